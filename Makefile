# The environment is made from the lock on first use; everything else runs in it.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test lint format clean
.DEFAULT_GOAL := demo

# The locks hold every package that others need (--no-deps), each file with its hash, which pip then demands of all. A
# build of torch that lies on this machine (pip's find-links) comes before the index's, which needs the CUDA libraries.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps

.venv/.installed: requirements.lock requirements-cuda.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	sed -n '/^torch==/,/[^\\]$$/p' requirements.lock > .venv/torch.lock
	$(PIP) --no-index -r .venv/torch.lock 2>/dev/null || true
	$(PIP) -r requirements.lock
	if $(BIN)/python -c "import importlib.metadata as m; exit('+cpu' in m.version('torch'))"; \
	then $(PIP) -r requirements-cuda.lock; fi
	$(PIP) --no-build-isolation -e .
	touch $@

# The whole workflow on the simulated cohort.
demo: .venv/.installed
	snakemake --cores 2 --quiet rules host reason
	@mgi report table results/simulated

test: lint
	python -m pytest -n auto --maxprocesses 8 --dist loadfile

lint: .venv/.installed
	ruff check .
	ruff format --check .
	snakefmt --check workflow
	snakemake --lint --quiet
	mypy
	codespell

format: .venv/.installed
	ruff check --fix .
	ruff format .
	snakefmt workflow

# What the demo made; inputs and results of other cohorts stay.
clean:
	rm -rf results/simulated resources/simulated resources/gdc/TCGA-SIM logs/simulated logs/simulate.* logs/gdc/TCGA-SIM
