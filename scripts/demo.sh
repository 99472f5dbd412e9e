#!/usr/bin/env bash
# The main job, from nothing: the tiny model (built once, then kept), eight minutes of GRPO on mazes, a table, a report.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="${VENV:-.venv}/bin"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # matrices this small gain little from a second thread, and lose much on a busy machine
runs="${RUNS:-runs}"
"$bin/mmrl" train configs/methods/demo.yaml --output-dir "$runs" --resume "$@" >/dev/null
"$bin/mmrl" report "$runs/demo"
