#!/usr/bin/env bash
# The main job, from nothing: the tiny model (built once, then kept), ten minutes of GRPO on mazes, a table, a report.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="${VENV:-.venv}/bin"
run=runs/demo
if [ -f "$run/report.html" ]; then
    echo "$run is there already; delete it to train again"
else
    "$bin/mmrl" train configs/methods/demo.yaml --resume
    "$bin/mmrl" report "$run" >/dev/null
fi
"$bin/mmrl" summary "$run"
echo "the whole story: $run/report.html"
