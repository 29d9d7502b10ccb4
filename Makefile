# Every target makes .venv and installs what it needs; Python 3.11 or newer and the package index are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ROOMS := cluster training tuning transfer evaluation k8s
SOURCES := $(ROOMS) src/shoal/*.py src/shoal/cli src/shoal/verbs examples tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format docs bench clean links

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: $(STAMP)  ## train and report on real data in about a minute
	@$(BIN)/shoal demo

test: $(STAMP)  ## unit and integration tests
	@$(BIN)/pytest tests

test-all: $(STAMP)  ## the slow tests too
	@$(BIN)/pytest tests -m "not gpu"

lint: $(STAMP)  ## ruff and mypy
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy -p shoal

format: $(STAMP)  ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

docs: $(STAMP)  ## write the pages that come from tables in the code
	@$(BIN)/python -m shoal.training.allowed > docs/allowed.md

bench: $(STAMP)  ## both sides of every comparison, with ratios; DATA=FILE.parquet (columns label and split) for all
	@$(BIN)/python benchmarks/intervals.py
	@$(BIN)/python benchmarks/reference.py
	@$(BIN)/python benchmarks/strategies.py
	@$(BIN)/python benchmarks/techniques.py
	@$(BIN)/python benchmarks/costs.py
	@$(BIN)/python benchmarks/crossval.py
	@$(BIN)/python benchmarks/fine_tuning.py
	@$(BIN)/python benchmarks/explain.py
	@if [ -n "$(DATA)" ]; then \
	  $(BIN)/python benchmarks/sharding.py "$(DATA)" label --split-column split && \
	  $(BIN)/python benchmarks/train.py "$(DATA)" && \
	  $(BIN)/python benchmarks/crossval.py "$(DATA)" && \
	  $(BIN)/python benchmarks/tuning.py "$(DATA)" && \
	  $(BIN)/python benchmarks/convergence.py "$(DATA)" label --split-column split; \
	else echo "sharding and whole commands: make bench DATA=FILE.parquet, with 0/1 label and train/test split columns"; fi

clean:  ## remove .venv and caches; runs stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info

# src/shoal/<room> are relative links. Windows without core.symlinks, and some zip tools, write
# small text files instead, and the package would lack its rooms without a word.
links:
	@for room in $(ROOMS); do \
	  if [ ! -L "src/shoal/$$room" ]; then \
	    echo "error: src/shoal/$$room is not a link to ../../$$room, so this checkout is incomplete." >&2; \
	    echo "       fix: git config core.symlinks true && git checkout -- src/shoal   (on Windows, inside WSL2)" >&2; \
	    exit 2; \
	  fi; \
	done

$(STAMP): pyproject.toml constraints.txt | links
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Shoal needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "       fix: make PYTHON=python3.12 <target>, with a Python that is installed" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@echo "installing into $(VENV) (once; some minutes on a slow network)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
