# `make` lists what can be done. Everything runs in .venv, which is made when it is first needed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PIP_INSTALL := $(PY) -m pip install --quiet --quiet --constraint constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The address of a package index to take torch from (a CPU build, say); empty: pip's own.
TORCH_INDEX ?=
PORT ?= 6006
ARGS ?=

.PHONY: help
help: ## Show this list
	@echo "Usage: make <target> [VARIABLE=value]"
	@echo
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) \
		| while IFS=$$'\t' read -r target text; do printf '  %-16s %s\n' "$$target" "$$text"; done
	@echo
	@echo "Variables: PYTHON=$(PYTHON) (makes .venv)  TORCH_INDEX=<index of torch>  PORT=$(PORT) (tensorboard)"
	@echo "           ARGS=<passed on to demo, test, bench, compare-memory and screenshot>"

.PHONY: setup
setup: $(STAMP) ## Make .venv with the pinned versions, this project editable
	@echo "$(VENV) is ready: $$($(PY) --version), torch $$($(PY) -c 'import importlib.metadata as m; print(m.version("torch"))')"

# Torch goes first and by itself: only it may come from another index.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON): not found; name a Python with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info[:2] == (3, 11) or print("Note: constraints.txt was made for Python 3.11; this is %d.%d." % sys.version_info[:2])'
	@test -x $(PY) || { echo "Making $(VENV)"; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@echo "Installing torch"
	@$(PIP_INSTALL) pip
	@$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") torch
	@echo "Installing this project and what it needs"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

# What only the tests need: a logger, and memory models of other people.
TESTED := $(VENV)/.tested
$(TESTED): $(STAMP) $(wildcard tests/requirements.txt tests/memory_models/requirements*.txt)
	@echo "Installing a logger and the memory models that the tests watch"
	@$(PIP_INSTALL) --requirement tests/requirements.txt
	@$(PIP_INSTALL) --requirement tests/memory_models/requirements.txt
	@$(PIP_INSTALL) --no-deps --requirement tests/memory_models/requirements-alone.txt
	@touch $@

.PHONY: demo
demo: $(STAMP) ## Train the example for a minute or so, monitored
	@$(PY) examples/train.py $(ARGS)

.PHONY: tensorboard
tensorboard: $(STAMP) ## Serve the newest run under runs/ on 127.0.0.1
	@files=$$(find runs -mindepth 2 -name '*tfevents*' 2>/dev/null || true); \
	test -n "$$files" || { echo "No run under runs/ yet: make demo" >&2; exit 1; }; \
	run=$$(ls -1t $$files | sed -n '1s|^\(runs/[^/]*\)/.*|\1|p'); \
	echo "Serving $$run"; \
	exec $(PY) -m tensorboard.main --logdir "$$run" --host 127.0.0.1 --port $(PORT)

.PHONY: test
test: $(TESTED) ## Run the tests
	@OMP_NUM_THREADS=1 CMR_TESTS_NEED_ALL=1 $(PY) -m pytest -n 2 -q $(ARGS)

.PHONY: test-gpu
test-gpu: $(STAMP) ## Run the tests that need a CUDA device (skipped where there is none)
	@$(PY) -m pytest -q -rs tests/gpu $(ARGS)

.PHONY: check
check: $(STAMP) ## Lint, formatting, types and import contracts
	@status=0; \
	$(PY) -m ruff check . || status=1; \
	$(PY) -m ruff format --check . || status=1; \
	$(PY) -m mypy || status=1; \
	$(VENV)/bin/lint-imports || status=1; \
	exit $$status

BENCHMARKS := $(sort $(wildcard benchmarks/[a-z]*.py))

.PHONY: bench
bench: $(STAMP) ## Run every benchmark
	@test -n "$(BENCHMARKS)" || { echo "No benchmark under benchmarks/ yet" >&2; exit 1; }
	@for file in $(BENCHMARKS); do echo "== $$file"; $(PY) $$file $(ARGS); done

.PHONY: compare-memory
compare-memory: $(STAMP) ## Train with and without the memory, and compare the runs
	@$(PY) examples/compare_memory.py $(ARGS)

.PHONY: screenshot
screenshot: $(STAMP) ## Take the pictures of the docs from the newest run (needs chromium)
	@$(PY) docs/make_screenshot.py $(ARGS)

.PHONY: clean
clean: ## Remove builds and caches; runs/ and .venv stay
	@rm -rf build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache \
		.hypothesis .benchmarks .coverage .coverage.* htmlcov lightning_logs
	@find . \( -name .git -o -path ./$(VENV) -o -path ./runs \) -prune \
		-o -type d -name __pycache__ -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## Remove .venv as well
	@rm -rf $(VENV)
