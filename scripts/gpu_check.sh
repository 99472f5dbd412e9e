#!/usr/bin/env bash
# What only a GPU can show, in under ten minutes on one of 80 GB: the GPU tests, then the group forward and the rollout at Qwen2.5-VL's own
# shapes with random weights, bfloat16. Writes one JSON: scripts/gpu_check.sh [OUT]
set -uo pipefail
cd "$(dirname "$0")/.."
out="$(realpath -m "${1:-docs/results/gpu.json}")"
python="${PYTHON:-.venv/bin/python}"
parts="$(mktemp -d)"
trap 'rm -rf "$parts"' EXIT
export PYTHONPATH=.
"$python" -c 'import torch, sys; sys.exit(0 if torch.cuda.is_available() else "gpu_check: no CUDA device here; run it on a machine with one")' || exit 2
status=0
"$python" -m pytest tests/gpu -q --no-header -o addopts= --import-mode=importlib | tee "$parts/tests.txt" || status=1
bench() { # name, then the arguments of `mmrl bench`
  local name="$1"
  shift
  timeout 240 "$python" -m mmrl.cli bench "$@" --json "$parts/$name.json" || status=1
}
bench forward-3b group-forward --model-size 3b --prompt 2048 --completion 512 --num-generations 8 --rounds 3 --max-tokens-per-stream 4096
bench forward-7b group-forward --model-size 7b --prompt 2048 --completion 512 --num-generations 8 --rounds 2 --max-tokens-per-stream 4096
bench rollout-3b rollout --model-size 3b --prompt 2048 --num-generations 8 --tokens 64 --rounds 2
"$python" - "$parts" "$out" "$status" <<'PY'
import json, pathlib, sys
import torch
parts, out, status = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
found = {path.stem: json.loads(path.read_text()) for path in sorted(parts.glob("*.json"))}
found["tests"] = (parts / "tests.txt").read_text().splitlines()[-1:]
found["device"], found["everything_ran"] = torch.cuda.get_device_name(), status == 0
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text(json.dumps(found, indent=1))
print(out)
PY
exit "$status"
