#!/usr/bin/env bash
# Everything that must hold before a commit, cheapest first.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="${VENV:-.venv}/bin"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$bin/ruff" format --check .
"$bin/ruff" check .
"$bin/basedpyright"
"$bin/lint-imports"
"$bin/pytest" tests/unit -q "$@"
