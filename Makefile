# make setup   a virtual environment in .venv with everything pinned in .ci/constraints.txt
# make test    setup, scripts/check.sh, every recipe, every documented command, a small learning run
# make demo    setup, then a few minutes of training on the embedded model

VENV ?= .venv
PYTHON ?= python3
STAMP := $(VENV)/.installed

.PHONY: setup test demo

setup: $(STAMP)

$(STAMP): pyproject.toml .ci/constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[dev]'
	touch $@

test: setup
	VENV=$(VENV) scripts/check.sh
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest tests/recipes tests/learning -q

demo: setup
	VENV=$(VENV) scripts/demo.sh
