# Verbs: setup | run | test | test-all | check | fix | sanitize | bench | gpu. Each makes its own environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PROMPT ?= What is the capital of France?

# What an extra asks for, without building the package a second time.
define extra
	@$(BIN)/python -c 'import importlib.metadata as m; print(*(r.split(";")[0] for r in m.requires("hal-runtime") if r.endswith("extra == \"$(1)\"")), sep="\n")' >$(VENV)/$(1).txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $(VENV)/$(1).txt
endef

.PHONY: setup run test test-all check fix sanitize bench gpu clean

setup: $(VENV)/.ready

$(VENV)/.base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "runtime needs Python 3.10 or newer, this is %d.%d; set PYTHON=" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.ready: $(VENV)/.base plugins/example/pyproject.toml
	$(call extra,serve)
	$(call extra,dev)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ./plugins/example
	@touch $@

$(VENV)/.oracles: $(VENV)/.ready
	$(call extra,oracles)
	@touch $@

# A portable OpenCL implementation for processors stands in for a device. The extra holds it where it is packaged.
$(VENV)/.opencl: $(VENV)/.ready plugins/opencl/pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable './plugins/opencl[pocl]'
	@touch $@

# The chat page is tested in a real browser where there is one; its tests say so where they are skipped.
$(VENV)/.browser: $(VENV)/.ready
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		{ apt-get update -qq && apt-get install -qq -y chromium chromium-driver >/dev/null; } \
			|| echo "chromium could not be installed: tests of the chat page will be skipped"; \
	else echo "no chromium and chromedriver here: tests of the chat page will be skipped"; fi
	@touch $@

run: $(VENV)/.base
	$(BIN)/runtime run "$(PROMPT)"

test: $(VENV)/.ready
	$(BIN)/python -m pytest -q -n 2 -m "not oracle and not slow"

test-all: $(VENV)/.oracles $(VENV)/.opencl $(VENV)/.browser
	RUNTIME_REQUIRE_OPENCL=1 $(BIN)/python -m pytest -q -n 2 tests plugins/opencl/tests

check: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=plugins/opencl $(BIN)/lint-imports
	$(BIN)/python tools/check_house.py

fix: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The native kernels under the address, undefined-behaviour and thread sanitizers; needs g++ and cmake.
sanitize: $(VENV)/.ready
	$(BIN)/python tools/sanitize.py

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/reference.py

# On a machine with a GPU (docs/gpu.md), in so many MINUTES: conformance, then the benchmark; or one of them by GPU_PART.
# GPU=rocm and GPU=xpu are the other kinds. GPU_PYTHON=python3 takes that Python with all that is in it, and no network.
GPU       ?= cuda
MINUTES   ?= 60
GPU_PART  ?= all
GPU_INDEX ?= https://download.pytorch.org/whl/$(or $(GPU_WHEELS_$(GPU)),$(GPU))
GPU_WHEELS_cuda := cu130
GPU_WHEELS_rocm := rocm7.2
GPU_RUN := benchmarks/gpu_session.py --backend $(GPU) --part $(GPU_PART) --minutes $(MINUTES) -- $(GPU_OPTIONS)
ifdef GPU_PYTHON
gpu:
	$(GPU_PYTHON) -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation \
	  --config-settings wheel.cmake=false --upgrade --target build/gpu/site .
	PYTHONPATH=$(CURDIR)/build/gpu/site$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PYTHON) $(GPU_RUN)
else
gpu: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch --index-url $(GPU_INDEX)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check transformers accelerate
	$(BIN)/python $(GPU_RUN)
endif

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .import_linter_cache
