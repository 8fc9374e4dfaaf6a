# `make drift` and `make test` need Python 3.11 (or newer) and make, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
CONSTRAINTS ?= constraints.txt
JOBS ?= 2
PYTEST ?=
# An index from which torch comes without CUDA: CI's machines have no GPU.
TORCH_INDEX ?=
BIN := .venv/bin

.PHONY: drift test lint clean help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

drift: .venv/ready  ## check every case of the newest tag and write the report
	$(BIN)/lora-drift check --jobs $(JOBS)

test: .venv/ready lint  ## lint, types, all tests and mini cases
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(PYTEST)

lint: .venv/ready  ## ruff, mypy, and which part may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy lora_drift tests benchmarks comfyui
	$(BIN)/lint-imports

clean:  ## remove the environment and everything built
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache

# Without pip's PIP_FIND_LINKS: torch and torchvision must come from one source to fit each other.
.venv/ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(TORCH_INDEX),PIP_FIND_LINKS= $(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) \
	    --index-url $(TORCH_INDEX) torch torchvision)
	PIP_FIND_LINKS= $(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]' || { \
	    echo "Set-up did not finish. It needs 10 GB of disk (torch with its CUDA libraries) and a package index; free here:"; \
	    df -h . "$${TMPDIR:-/tmp}"; exit 1; } >&2
	touch $@
