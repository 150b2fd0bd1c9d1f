# Utterflow. `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

VENV ?= .venv
CORES ?= $(shell nproc)
VLLM ?= cpu
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
REQUIREMENTS := $(addprefix requirements/,main.txt dev.txt slurm.txt) pyproject.toml

# Jobs run side by side, one thread each; idle OpenMP threads must not spin.
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE ?= 1
export PATH := $(BIN):$(PATH)

.PHONY: help setup setup-vllm demo test test-slow dry-run report lint format docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(READY)  ## make .venv with the pinned environment

$(READY): $(REQUIREMENTS)
	@if [ -z "$(PYTHON)" ]; then echo "error: no Python 3.11 or 3.12 found; install one (Debian: apt-get install python3 python3-venv) or run make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@command -v g++ >/dev/null || { echo "error: no C++ compiler found, kenlm needs one (Debian: apt-get install g++)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/main.txt -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/slurm.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

setup-vllm:  ## make .venv-vllm for `backend: vllm` (VLLM=gpu where there are GPUs)
	@case "$(VLLM)" in cpu | gpu) ;; *) echo "error: write VLLM=cpu or VLLM=gpu" >&2; exit 1 ;; esac
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check $(if $(filter cpu,$(VLLM)),--no-deps) -r requirements/vllm-$(VLLM).txt
	@.venv-vllm/bin/python -P -c 'import vllm; print("vLLM", vllm.__version__, "in .venv-vllm")'

demo: $(READY)  ## run the embedded demo; prints a table and where the report is
	$(BIN)/snakemake demo --cores $(CORES) --quiet rules
	@$(MAKE) --no-print-directory report
	@$(BIN)/utterflow report summary
	@echo "report: $(abspath results/report/report.html)"

report: $(READY)  ## write results/report/report.html from finished results
	@ls results/report/*.tsv >/dev/null 2>&1 || { echo "error: no results yet to report; run make demo or snakemake first" >&2; exit 1; }
	@said=$$($(BIN)/snakemake all --cores 1 --report results/report/report.html --quiet rules 2>&1) || { echo "$$said" >&2; exit 1; }

dry-run: $(READY)  ## show what would run
	$(BIN)/snakemake --dry-run --cores $(CORES)

test: $(READY)  ## run the tests (set REQUIRE_SLURM=1 to insist on the Slurm ones)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" tests

test-slow: $(READY)  ## run the slow tests too
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

lint: $(READY)  ## ruff, snakefmt, snakemake --lint, mypy, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint
	$(BIN)/mypy
	$(BIN)/python -m utterflow.config.reference --check

format: $(READY)  ## format all code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

docs: $(READY)  ## regenerate config/schema.json and config/README.md
	$(BIN)/python -m utterflow.config.reference

clean:  ## remove results (the journal too); keeps .venv and data/
	rm -rf results .snakemake
	mkdir -p results && touch results/.gitkeep
