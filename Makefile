# Verbs: setup | run | test | test-all | check | fix | bench. Each makes its own environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PROMPT ?= What is the capital of France?

.PHONY: setup run test test-all check fix bench clean

setup: $(VENV)/.ready

$(VENV)/.base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "runtime needs Python 3.10 or newer, this is %d.%d; set PYTHON=" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.ready: $(VENV)/.base plugins/example/pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' ./plugins/example
	@touch $@

$(VENV)/.oracles: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,oracles]'
	@touch $@

# A portable OpenCL implementation for processors stands in for a device. The extra holds it where it is packaged.
$(VENV)/.opencl: $(VENV)/.ready plugins/opencl/pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable './plugins/opencl[pocl]'
	@touch $@

run: $(VENV)/.base
	$(BIN)/runtime run "$(PROMPT)"

test: $(VENV)/.ready
	$(BIN)/python -m pytest -q -n 2 -m "not oracle and not slow"

test-all: $(VENV)/.oracles $(VENV)/.opencl
	RUNTIME_REQUIRE_OPENCL=1 $(BIN)/python -m pytest -q -n 2 tests plugins/opencl/tests

check: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_house.py

fix: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/reference.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .import_linter_cache
