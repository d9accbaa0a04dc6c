# Parcae's tasks. `make` alone lists them. Everything happens in .venv, which `make setup` creates.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEMO_HOME ?= .demo

.PHONY: help setup demo test check lint types imports wheel bench paper clean

help:
	@echo "make setup   create .venv and install Parcae in it (training and development tools included)"
	@echo "make demo    set up, then train gpt-tiny on a local spot fleet through a shipped trace"
	@echo "make test    set up, then run every test"
	@echo "make check   lint, types, import rules, and a wheel that is built, installed elsewhere and run"
	@echo "make bench   the planner's speed"
	@echo "make paper TRACE=FILE   the paper's Table 2 beside our replay of its trace"

setup: $(STAMP)

# The stamp is newer than what decides the installation, so a second run installs nothing.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Parcae needs Python 3.11 or newer: make setup PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	@touch $@

demo: setup
	PARCAE_HOME=$(DEMO_HOME) $(BIN)/parcae launch gpt-tiny --cloud local --nodes 8 \
	  --trace templates/traces/demo-8.csv --speed 60 --steps 200
	@PARCAE_HOME=$(DEMO_HOME) $(BIN)/parcae status --once

# Two files at a time: most tests wait for processes and deadlines rather than compute.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: lint types imports wheel

lint: setup
	$(BIN)/ruff check .
	$(BIN)/python -m pytest tests/house -k "not wheel"

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

wheel: setup
	$(BIN)/python -m pytest tests/house/test_wheel.py

bench: setup
	$(BIN)/python benchmarks/planner.py

paper: setup
	$(BIN)/python benchmarks/paper.py $(TRACE)

clean:
	rm -rf .venv $(DEMO_HOME) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
