# Every target sets up .venv/ first when that is needed; `make` alone lists them.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Setting up must not run beside what needs it.
.NOTPARALLEL:

# A Python of one's own: make setup PYTHON=/path/to/python3.13
PYTHON ?=
# What make cases runs
DIR ?= tests/cases
VENV := .venv
BIN := $(VENV)/bin
# The stamp holds the folder it was made in: a copied or moved checkout sets itself up anew, since scripts in a venv name their folder.
STAMP := $(VENV)/.set-up-in
export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONHOME PYTHONPATH

ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-14s %s\n", $$1, $$2}' Makefile

.PHONY: setup
setup: $(STAMP) ## make .venv/ with everything pinned by hash

# The pinned file is whole, so pip must not look for more: older ones take a newer release for an extra of a pinned package, and fail.
$(STAMP): requirements-dev.txt pyproject.toml
	@set -eu; rm -f $(STAMP); \
	if [ -n "$${PYTHON:-}" ]; then set -- "$$PYTHON"; else set -- python3 python3.14 python3.13 python3.12 python3.11; fi; \
	found=; for python; do \
	  "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { found=$$python; break; }; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "Dues needs Python 3.11 or newer with its venv module (Debian: apt-get install python3-venv); tried: $$*." >&2; \
	  echo "Name another one so: make setup PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$("$$found" --version) (once; about a minute)" >&2; \
	$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || "$$found" -m venv --clear $(VENV); \
	$(BIN)/python -m pip install -qq --no-input --only-binary=:all: --no-deps --require-hashes -r requirements-dev.txt; \
	$(BIN)/python -m pip install -qq --no-input --no-index --no-deps --no-build-isolation --force-reinstall --editable .; \
	broken=$$($(BIN)/python -m pip check) || { echo "$$broken" >&2; exit 1; }; \
	pwd -P > $(STAMP)

.PHONY: demo
demo: setup ## play a whole story against a simulated Stripe (ARGS=--once ends by itself)
	@$(BIN)/python -m ops.cli demo $(ARGS)

.PHONY: dev
dev: setup ## servers, receiver, workers and beat in one terminal; Ctrl-C ends all of it
	@$(BIN)/python -m ops.cli dev $(ARGS)

# Each of these processes has servers of its own; more than four want more memory than they save time.
PARALLEL ?= --numprocesses=logical --maxprocesses=4 --dist=worksteal

.PHONY: test
test: setup ## all tests, with branch coverage (ARGS=tests/models runs some)
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term $(ARGS)

.PHONY: chaos
chaos: setup ## everything killed, frozen and cut off under load, half an hour (ARGS=--short: two minutes)
	@$(BIN)/python -m tests.chaos $(ARGS)

.PHONY: fuzz
fuzz: setup ## hostile bytes for the receiver, events wrong in every field and way for the handlers; a quarter of an hour
	$(BIN)/python -m pytest $(PARALLEL) --hypothesis-profile=thorough tests/fuzz $(ARGS)

.PHONY: check
check: setup ## lint, format, types, and the pinned packages against known vulnerabilities
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python .ci/audit.py requirements-dev.txt

MINUTES ?= 3

.PHONY: prove
prove: setup ## random histories in any order against the true one, the simulator and a naive computation (MINUTES=3)
	@MINUTES=$(MINUTES) $(BIN)/python -m tests.convergence $(ARGS)

.PHONY: mutants
mutants: setup ## break Dues on purpose, one way at a time: each must be caught (long)
	@$(BIN)/python -m tests.convergence.mutants $(ARGS)

.PHONY: cases
cases: setup ## run a folder of cases: DIR=tests/cases
	@$(BIN)/python -m tests.cases "$(DIR)"

.PHONY: requirements
requirements: setup ## pin everything anew: requirements*.txt from pyproject.toml (ARGS=--upgrade takes newer releases)
	$(COMPILE) --extra embedded --extra dev -o requirements-dev.txt
	$(COMPILE) --extra embedded -o requirements.txt
	$(COMPILE) -o requirements-run.txt
	$(COMPILE) --only-build-deps --build-deps-for editable -o requirements-build.txt

COMPILE = $(BIN)/python -m piptools compile --quiet --strip-extras --allow-unsafe --generate-hashes --no-header --no-emit-options \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host $(ARGS) pyproject.toml
