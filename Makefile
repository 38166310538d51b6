# make demo   real photographs attacked, purified, classified: sets up, runs, writes demo/report.html
# make test   sets up and runs the tests
# make help   the rest

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# Threads: two test workers with one thread each are faster than one with two.
TEST_ENV = OMP_NUM_THREADS=1

.PHONY: help demo test lint types bench clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo "make lint   ruff: lint and format"
	@echo "make types  mypy"
	@echo "make bench  one purification step against the plain reference, in one run"
	@echo "make clean  remove the environment and everything generated"

# The pinned torch first and alone: resolving it together with the rest could fetch another build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[photos,samples]' --group dev
	@touch $(READY)

demo: $(READY)
	$(BIN)/robustmim demo

test: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/purification_step.py

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
