# The environment is made from the lock on first use; everything else runs in it.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test lint format clean
.DEFAULT_GOAL := demo

.venv/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# The whole workflow on the simulated cohort.
demo: .venv/.installed
	snakemake --cores 2 --quiet rules host reason
	snakemake --quiet host progress --report results/simulated/report.html
	@echo "The report: $(CURDIR)/results/simulated/report.html"
	@mgi report table results/simulated

test: lint
	python -m pytest -n auto --maxprocesses 8 --dist loadfile

lint: .venv/.installed
	ruff check .
	ruff format --check .
	snakefmt --check workflow
	snakemake --lint --quiet

format: .venv/.installed
	ruff check --fix .
	ruff format .
	snakefmt workflow

# What the demo made; inputs and results of other cohorts stay.
clean:
	rm -rf results/simulated resources/simulated resources/gdc/TCGA-SIM logs/simulated logs/simulate.* logs/gdc/TCGA-SIM
