PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/setup.stamp
PROTO_SETUP := .venv/proto/setup.stamp

.DEFAULT_GOAL := help
.PHONY: help setup test lint format fuzz kernels-check mamba-ssm protos protos-check demo serve clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(SETUP) ## Create .venv and install everything, at the versions in constraints.txt

test: setup protos-check lint ## Check everything: contracts, style, types, import arrows, tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: setup ## Check style, types and import arrows
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protos: $(PROTO_SETUP) ## Generate curfew/v1/ from protos/
	.venv/proto/bin/python tools/protos.py

protos-check: $(PROTO_SETUP) ## Check that curfew/v1/ is what protos/ gives
	.venv/proto/bin/python tools/protos.py --check

fuzz: setup ## Attack the services and their files for ten minutes (FUZZ="--minutes 60 --seed 7")
	$(BIN)/python -m tests.fuzz $(FUZZ)

kernels-check: setup ## Compile every Triton kernel for every model size and batch, without a GPU
	$(BIN)/python tools/kernels_check.py

mamba-ssm: setup ## Install mamba-ssm's Triton kernels, which tests and benchmarks then compare with
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt einops ninja packaging setuptools wheel
	MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE $(BIN)/python -m pip install -qq \
		--disable-pip-version-check --no-deps --no-build-isolation -c constraints.txt mamba-ssm

demo: setup ## Run the demonstration
	$(BIN)/python -m demo

serve: setup ## Start a controller and a worker on this machine
	$(BIN)/curfew serve

clean: ## Remove .venv, caches and builds
	rm -rf .venv dist build *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(SETUP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[worker,controller,telemetry,mcp,dev]'
	@touch $@

$(PROTO_SETUP): tools/protos-requirements.txt
	$(PYTHON) -m venv .venv/proto
	.venv/proto/bin/python -m pip install -qq --disable-pip-version-check -r tools/protos-requirements.txt
	@touch $@
