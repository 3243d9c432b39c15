# Every target installs what it needs into .venv; nothing else has to be set up.
#
#   make demo      a shipped planner crosses a maze: a table, and pictures in demo/
#   make test      the test suite, on all cores; a part of it, in one process, with
#                  make test PYTEST_ARGS="tests/test_guides.py -k scale"
#   make coverage  the same, measuring its coverage: slower
#   make docs      the documentation, in docs/_build/html
#   make gates     what CI checks beside the tests
#   make oldest    the tests that depend on versions of libraries, on the oldest
#                  supported stack (.ci/oldest.txt), which also has d3rlpy and ray
#   make browser-test  the page of `diffuser-policy play` in Chromium, where that is
#                  installed: /usr/bin/chromium, or CHROMIUM=/path/to/it
#   make proofs    long tests that CI leaves out: thousands of generated inputs, kills,
#                  every kind of dataset; a part of them with PYTEST_ARGS

# The build of torch that results were measured with. Another one, for example for
# your CUDA version: make test TORCH="torch==2.13.0 --index-url ..."
TORCH ?= torch==2.13.0
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV ?= .venv
OLDEST ?= .venv-oldest
PYTEST_ARGS ?=

# One worker for each core, about 700 MB each. With `worksteal`, a worker that has run all
# its tests takes some from another, so that all end at about the same time.
PARALLEL := $(if $(PYTEST_ARGS),,-n auto --maxprocesses 8 --dist worksteal)

# Tests that depend on versions of libraries; the others are the same on every stack.
OLDEST_TESTS := benchmark_cells benchmark_cli benchmark_engines benchmark_methods check_policy cli \
    cli_evaluate critic_values d3rlpy_methods data_cache data_collection data_flat \
    data_generators data_minari decision_transformer dynamics_models env_contract \
    evaluation everyday_environments features guide_plugin import kuka_collection \
    kuka_env loops make_env maze_envs maze_registration maze_wrappers \
    multiprocess_training normalizers observations ogbench outside_methods packaging \
    planning_methods plotting plugins reference_returns report settings shooting spaces \
    transitions

BIN := $(VENV)/bin
PIP := -m pip install -qq
export PIP_DISABLE_PIP_VERSION_CHECK = 1
unexport PYTHONDONTWRITEBYTECODE # the tests start many processes

.DEFAULT_GOAL := help
.PHONY: help demo test browser-test lint format types contracts docs gates coverage wheel oldest proofs \
    clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^#   make/s/^#  //p' Makefile

demo: $(VENV)/.demo
	$(BIN)/diffuser-policy evaluate multi2d-large --episodes 10 --seed 0
	$(BIN)/diffuser-policy plan multi2d-large --seed 0 --out demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

browser-test: $(VENV)/.dev
	$(BIN)/python -m pytest -m browser tests/test_play_browser.py $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(VENV)/.dev
	$(BIN)/mypy

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo 'open docs/_build/html/index.html'

gates: lint contracts types docs wheel

coverage: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term --cov-report=html \
	    $(PYTEST_ARGS)

# sdist -> wheel -> a clean environment, outside the repository.
wheel: $(VENV)/.dev
	PYTHON="$(PYTHON)" TORCH="$(TORCH)" BUILDER="$(BIN)/python" bash .ci/wheel_smoke.sh

oldest: $(OLDEST)/.dev
	$(OLDEST)/bin/python -m pytest $(PARALLEL) \
	    $(OLDEST_TESTS:%=tests/test_%.py) $(PYTEST_ARGS)

proofs: $(VENV)/.dev
	$(BIN)/python -m pytest -m proof --timeout 0 $(PARALLEL) $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) $(OLDEST) build dist demo docs/_build docs/api htmlcov .coverage .coverage.* \
	    .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# Stamps: an environment is installed again only when pyproject.toml changes.

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11'; exit 1; }
	$(PYTHON) -m venv $*

$(VENV)/.torch: | $(VENV)/bin/python
	@echo 'installing into $(@D): a few minutes, once'
	$(BIN)/python $(PIP) $(TORCH)
	@touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.torch
	$(BIN)/python $(PIP) --editable '.[maze,data,plot]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.torch
	$(BIN)/python $(PIP) --editable '.[all,ogbench,dev,docs]'
	@touch $@ $(VENV)/.demo

$(OLDEST)/.dev: pyproject.toml .ci/oldest.txt | $(OLDEST)/bin/python
	@echo 'installing into $(@D): a few minutes, once'
	$(OLDEST)/bin/python $(PIP) $(TORCH)
	$(OLDEST)/bin/python $(PIP) --constraint .ci/oldest.txt \
	    --editable '.[all,ogbench,dev,baselines,ray]'
	@touch $@
