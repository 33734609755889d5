# Two commands on a fresh machine:  make demo  and  make test.  Nothing is written outside this folder but the
# store of downloaded inputs (XDG_CACHE_HOME, ~/.cache). All paths are relative, so the folder may be called anything.

PYTHON ?= python3
BENCH_PROFILE ?= profiles/torch-cuda.yaml
PYTEST_ARGS ?=
BENCH_ARGS ?=

SETUP = PYTHON='$(PYTHON)' scripts/setup
BIN = .venv/bin

.PHONY: help demo test test-devel lint bench bench-registries bench-models bench-start clean

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile

demo: ## publish two services and their models, run them, and send them requests
	@$(SETUP) models
	@$(BIN)/python scripts/demo.py --build '$(BIN)/build'

test: lint ## check everything: ruff, mypy, pytest
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-devel: ## compile a kernel in a composed devel image: fetches 2 GB
	@$(SETUP) test
	@LAYERWRIGHT_TEST_DEVEL=1 $(BIN)/python -m pytest $(PYTEST_ARGS) tests/test_cuda_devel.py

lint: ## ruff and mypy alone
	@$(SETUP) test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: ## measure a build against the floor of this machine
	@$(SETUP) bench
	@$(BIN)/python -m bench --build '$(BIN)/build' $(BENCH_ARGS) '$(BENCH_PROFILE)'

bench-registries: ## measure pushes, publications and pulls beside crane, oras and skopeo
	@$(SETUP) bench test
	@$(BIN)/python -m bench.registries --build '$(BIN)/build' $(BENCH_ARGS) '$(BENCH_PROFILE)'

bench-models: ## measure pulls of a model, whole and by the tensor, beside oras
	@$(SETUP) bench test
	@$(BIN)/python -m bench.models --build '$(BIN)/build' $(BENCH_ARGS)

bench-start: ## measure cold starts over a link of 1 Gbit/s and of 300 Mbit/s, as root
	@$(SETUP) bench test
	@$(BIN)/python -m bench.coldstart --build '$(BIN)/build' $(BENCH_ARGS) '$(BENCH_PROFILE)'

clean: ## remove what was made here; the store of inputs stays (see `build cache`)
	rm -rf .venv .venv.lock out dist build *.egg-info tests/peers/bin .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
