# SparseLens: `make demo` shows it, `make test` checks it. Both install what they need into .venv first.
#   make demo DEMO_SERVE=0      run the demo, check its page, leave
#   make test PYTEST="-k prompt"
#   make setup PYTHON=python3.12

SHELL := /bin/bash
VENV ?= .venv
PYTHON ?=
PYTEST ?=
NOTEBOOKS ?=
MASKS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test test-all lint format types bench notebooks masks schema clean clean-venv

help:
	@echo "make setup      install everything into $(VENV) (once)"
	@echo "make demo       capture, compare and open the pages; Ctrl-C ends it (DEMO_SERVE=0: check and leave)"
	@echo "make test       the tests, without the slow ones"
	@echo "make test-all   all tests"
	@echo "make lint       ruff: rules and formatting"
	@echo "make types      mypy, strict"
	@echo "make bench      the benchmarks, one process each"
	@echo "make notebooks  execute the notebooks and store their outputs (NOTEBOOKS=notebooks/sinks.ipynb: one)"
	@echo "make masks      draw the mask of every policy into docs (MASKS=\"a_shape quest\": these)"
	@echo "make clean      remove what was built (clean-venv: the environment too)"

setup: $(READY)

$(READY): pyproject.toml constraints.txt .ci/setup
	@VENV="$(VENV)" PYTHON="$(PYTHON)" .ci/setup
	@touch $@

demo: $(READY)
	@$(BIN)/sparselens demo

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" $(PYTEST)

test-all: $(READY)
	$(BIN)/python -m pytest $(PYTEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

notebooks: $(READY)
	@$(BIN)/python -P notebooks/execute.py $(NOTEBOOKS)

masks: $(READY)
	@$(BIN)/python -P docs/draw_masks.py $(MASKS)

schema: $(READY)
	$(BIN)/python -m sparselens.storage.schema

bench: $(READY)
	@set -e; for file in benchmarks/*.py; do \
	  case $$file in */_*) continue;; \
	    */plans.py) echo "== $$file left out: an experiment of an hour, run it by itself"; continue;; \
	    */views.py) echo "== $$file left out: it captures for an hour first, run it by itself"; continue;; \
	    */gpu.py) command -v nvidia-smi >/dev/null || { echo "== $$file left out: no GPU"; continue; };; esac; \
	  echo "== $$file"; $(BIN)/python -P "$$file"; done

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-trace demo-trace-report.html
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

clean-venv: clean
	rm -rf $(VENV)
