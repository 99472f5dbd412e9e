#!/usr/bin/env bash
# The main job, from nothing: the tiny model (built once, then kept), ten minutes of GRPO on mazes, a table, a report.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="${VENV:-.venv}/bin"
run=runs/demo
"$bin/mmrl" train configs/methods/demo.yaml --resume >/dev/null
"$bin/mmrl" report "$run"
