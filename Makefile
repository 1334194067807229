# One command each, from a bare clone with Python 3.11 or newer and make:
#   make demo      train a score SDE on real digits, sample, measure bits/dim; pictures in runs/demo
#   make test      the default test suite (make test-deep and make test-slow for the rest)
#   make install   the environment alone, in .venv
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/installed.stamp

.PHONY: install demo test test-deep test-slow lint bench clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "scorejax needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make install PYTHON=python3.12" >&2; exit 2; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "Installing scorejax into $(VENV) (about a minute) ..."
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

demo: install
	@$(RUN) -m launch.demo --workdir=runs/demo

test test-deep: PYTEST := $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: install
	@$(PYTEST)

test-deep: install
	@$(PYTEST) -m "deep and not slow"

test-slow: install
	@$(RUN) -m pytest -m slow

lint: install
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

bench: install
	@$(RUN) -c 'import torch' 2>/dev/null || $(RUN) -m pip install --quiet --editable '.[bench]'
	$(RUN) -m benchmarks.train_step
	$(RUN) -m benchmarks.sampling

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache
