# make setup   a virtual environment in .venv with everything pinned in requirements/ci.txt
# make test    setup, scripts/check.sh, every recipe
# make demo    setup, then a few minutes of training on the embedded model

VENV ?= .venv
PYTHON ?= python3
STAMP := $(VENV)/.installed

.PHONY: setup test demo

setup: $(STAMP)

$(STAMP): pyproject.toml requirements/ci.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint requirements/ci.txt --editable '.[dev]'
	touch $@

test: setup
	VENV=$(VENV) scripts/check.sh
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest tests/recipes -q

demo: setup
	VENV=$(VENV) scripts/demo.sh
