# semipd: make start | test | check | lint | soak | test-triton
# PYTHON=...        the interpreter for the virtual environment (3.11 or newer)
# TORCH_INDEX=URL   an extra package index for torch, such as PyTorch's index of CPU builds
# TRITON=3.6.0      the Triton that test-triton runs on; a newer one has its own environment beside it
# WORKERS=3         processes that run the tests
# MODEL=NAME        what `make start` serves; smollm2, which is fetched first, unless ARGS name a model or a
#                   configuration; where it cannot be fetched, demo is served
# ARGS="..."        more arguments for semipd-daemon start

VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
MODEL ?= $(if $(findstring --model,$(ARGS))$(findstring --config,$(ARGS))$(SEMIPD_MODEL__NAME),,smollm2)
WORKERS ?= 3
NODE_CACHE ?= $(HOME)/.cache/semipd-node
TORCH_INDEX ?=
TRITON ?= 3.6.0
TRITON_VENV ?= .venv-triton-$(TRITON)

# Whole files go to the worker that is free, in order: what the tests of a file share is made once, and the slow
# folders come first.
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# the first interpreter that is new enough and can make virtual environments; a name that only pyenv knows fails here
CAN_USE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c '$(CAN_USE)' 2>/dev/null && { command -v $$python; break; }; done)

# Bytecode is kept whatever the environment says: the tests start hundreds of processes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: start test test-triton check lint soak clean

start: $(VENV)/.installed
	@model='$(MODEL)'; if [ "$$model" = smollm2 ] && ! $(BIN)/semipd-daemon fetch smollm2 >/dev/null; then \
		echo "SmolLM2 could not be fetched; serving the bundled demo model instead, which writes stories."; \
		model=demo; \
	fi; exec $(BIN)/semipd-daemon start $${model:+--model "$$model"} $(ARGS)

# The test of OpenAI's Node client runs where npm can fetch it, and says why it is skipped elsewhere.
test: $(VENV)/.installed-dev
	@command -v npm >/dev/null && { test -d $(NODE_CACHE)/node_modules/openai || \
		npm install --silent --prefix $(NODE_CACHE) openai; } || true
	SEMIPD_NODE_MODULES=$(NODE_CACHE) $(BIN)/pytest $(PARALLEL)

check: lint
	$(BIN)/pytest $(PARALLEL) tests/daemon/test_cli_lifecycle.py $(wildcard tests/daemon/test_end_to_end*.py) tests/unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/kernel_report.py --summary --cache .kernel_cache

soak: $(VENV)/.installed-dev
	$(BIN)/pytest -m soak --timeout 3600 $(PARALLEL)
	@set -e; for script in $(wildcard scripts/soak_*.py scripts/fuzz.py scripts/fuzz_commands.py scripts/chaos.py); do \
		echo "$$script"; $(BIN)/python $$script; done
	$(BIN)/python scripts/chaos.py --device cpu
	$(BIN)/python scripts/kernel_report.py --full --summary --cache .kernel_cache
	@$(MAKE) --no-print-directory test-triton

# The kernels' tests and report on the oldest Triton, beside the newest in $(VENV). Nothing but what the engine
# side needs is installed. Triton 3.6's interpreter does not know numpy 2.4.
test-triton: $(TRITON_VENV)/.installed
	PYTHONPATH=.:kernels $(TRITON_VENV)/bin/python -m pytest tests/kernels
	PYTHONPATH=.:kernels $(TRITON_VENV)/bin/python scripts/kernel_report.py --summary --cache .kernel_cache

$(TRITON_VENV)/.installed: | $(BIN)/python
	$(BIN)/python -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/python -m pip install --disable-pip-version-check \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) 'triton==$(TRITON)' 'numpy<2.4' \
		'torch>=2.11,<2.14' safetensors pytest pytest-asyncio pytest-timeout
	@touch $@

clean:
	rm -rf $(VENV) .venv-triton-* .kernel_cache dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
		echo "error: no Python 3.11 or newer that can make virtual environments." >&2; \
		echo "Debian: apt install python3 python3-venv; elsewhere: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@$(PYTHON) -c '$(CAN_USE)' || { \
		echo "error: $(PYTHON) is older than 3.11 or lacks venv (Debian: apt install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One pip call resolves everything together, so that no dependency pulls a newer torch later.
define install
	@echo "Installing semipd into $(VENV). torch is by far the largest part: a CPU build is about 200 MB to"
	@echo "download and 900 MB on disk; the CUDA build, which PyPI serves on Linux, is several GB."
	$(if $(TORCH_INDEX),,@echo "For a machine without a GPU give PyTorch's index of CPU builds: make TORCH_INDEX=URL.")
	$(BIN)/python -m pip install --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.$(1)'
endef

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(call install,$(if $(wildcard $(VENV)/.installed-dev),[dev]))
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(call install,[dev])
	@touch $(VENV)/.installed $@
