# A fresh machine needs Python 3.10 to 3.13 and make: `make train` and `make test` do the rest in .venv.
# Another interpreter: `make PYTHON=python3.12 test` (before .venv exists).
# Another agent: `make train ENV=... STEPS=... SEED=...`; environments that a package registers also need
# TRAIN_EXTRAS=zoo,dmc TRAIN_ARGS="--gym-packages shimmy" ENJOY_ARGS="--gym-packages shimmy".
# Newest versions in place of the pinned ones: CONSTRAINTS=; another torch: TORCH="torch==2.12.0".

SHELL := /bin/bash
COMMA := ,
# A pipe fails when any part of it does.
.SHELLFLAGS := -o pipefail -c
PYTHON ?= $(firstword $(foreach name,python3 python,$(shell command -v $(name))))
VENV ?= .venv
BIN := $(VENV)/bin

ALGO ?= energy_sac
ENV ?= Pendulum-v1
STEPS ?= 5000
EVAL_STEPS ?= 2000
SEED ?= 0
LOGS ?= logs
TRAIN_ARGS ?=
ENJOY_ARGS ?=
TRAIN_EXTRAS ?= zoo

TORCH ?= $(shell grep '^torch==' constraints.txt)
CONSTRAINTS ?= -c constraints.txt

PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
# of `make test-install`
INSTALL_ARGS ?= --newest
CODE := sb3_energy _sb3_energy_autoload.py setup.py tests benchmarks examples docs

# Small networks on few cores: one thread each is several times faster than all of them.
export OMP_NUM_THREADS := 1

# What an installed set of extras depends on; pip runs again only when one of these changes.
INSTALL_INPUTS := setup.cfg setup.py pyproject.toml constraints.txt sb3_energy/version.txt

.DEFAULT_GOAL := help
.PHONY: help train test test-slow test-install lint type format docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

train: $(VENV)/.installed-$(subst $(COMMA),_,$(TRAIN_EXTRAS)) ## train an agent through the RL Zoo, evaluate it, say where it is
	$(BIN)/python -m rl_zoo3.train --algo $(ALGO) --env $(ENV) -n $(STEPS) --seed $(SEED) --num-threads 1 \
		--eval-freq -1 -f $(LOGS) $(TRAIN_ARGS)
	@echo "Evaluating $(EVAL_STEPS) steps without noise ..."
	@$(BIN)/python -m rl_zoo3.enjoy --algo $(ALGO) --env $(ENV) -n $(EVAL_STEPS) --seed 1000 --num-threads 1 \
		--no-render --deterministic -f $(LOGS) $(ENJOY_ARGS) | tee $(LOGS)/last_evaluation.txt
	@echo
	@sed -n -e 's/^Mean reward:/Mean return: /p' -e 's/^Loading \(.*\.zip\)$$/Trained agent: \1/p' $(LOGS)/last_evaluation.txt
	@echo "Watch it:      $(BIN)/python -m rl_zoo3.enjoy --algo $(ALGO) --env $(ENV) -f $(LOGS) $(ENJOY_ARGS)"

test: $(VENV)/.installed-tests_zoo_dmc ## run the fast tests
	$(BIN)/python -m pytest -m "not slow" -n $(PYTEST_WORKERS) $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-tests_zoo_dmc ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow -n $(PYTEST_WORKERS) $(PYTEST_ARGS)

test-install: ## newest versions: what each extra promises, in clean environments; before a release
	$(CHECK_PYTHON)
	$(PYTHON) tests/install/fresh_machine.py $(INSTALL_ARGS) $(if $(filter command line,$(origin TORCH)),--torch "$(TORCH)")

lint: $(VENV)/.installed-tests_zoo_dmc ## check style and format
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

type: $(VENV)/.installed-tests_zoo_dmc ## check types
	$(BIN)/mypy

format: $(VENV)/.installed-tests_zoo_dmc ## put the code into the house's format
	$(BIN)/ruff check --select I --fix $(CODE)
	$(BIN)/ruff format $(CODE)

docs: $(VENV)/.installed-docs ## build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean: ## remove what was built; keeps logs and .venv
	rm -rf build dist *.egg-info docs/_build .pytest_cache .mypy_cache .ruff_cache

define CHECK_PYTHON
@test -n "$(PYTHON)" || { echo "no python3 or python on the PATH: make PYTHON=/path/to/python ..."; exit 1; }
@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else \
	"sb3-energy needs Python 3.10 to 3.13, $(PYTHON) is %d.%d: make PYTHON=... " % v)'
endef

# torch comes first and from wherever pip is told to look: a machine without a GPU may offer the CPU build.
$(VENV)/.torch: constraints.txt
	$(CHECK_PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	@touch $@

# .installed-zoo_dmc has the extras zoo and dmc.
$(VENV)/.installed-%: $(VENV)/.torch $(INSTALL_INPUTS)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e ".[$(subst _,$(COMMA),$*)]"
	@touch $@
