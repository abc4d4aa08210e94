# `make demo` and `make test` set up all they need first; `make` alone lists the targets.

# The Python that makes the environment (3.10 to 3.13), and flags for its set-up:
#   make setup PYTHON=python3.12 SETUP_FLAGS=--cpu-ops
PYTHON ?= python3
SETUP_FLAGS ?=
# Flags for pytest: make test TEST_FLAGS="-k packaging"
TEST_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint docs wheel prove-wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup:  ## make .venv with the tested versions (about 10 minutes once, then no time)
	@$(PYTHON) tools/setup_env.py $(SETUP_FLAGS)

demo: setup  ## train, evaluate and draw on generated images, into work_dirs/demo/
	.venv/bin/python tools/demo.py

test: setup  ## run the tests
	.venv/bin/python -m pytest $(TEST_FLAGS)

lint: setup  ## check the code's style
	.venv/bin/python -m ruff check .

docs: setup  ## build the documentation into work_dirs/docs; a warning is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet
	@echo 'written: work_dirs/docs/index.html'

wheel: setup  ## build the wheel (by way of the source package) into dist/
	.venv/bin/python -m build --no-isolation

prove-docs: setup  ## build the documentation into work_dirs/docs; a warning is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet
	@echo 'written: work_dirs/docs/index.html'

wheel: setup  ## install the wheel into an empty environment, from scratch, and train with it
	PYTHON=$(PYTHON) bash tests/prove_wheel.sh

clean:  ## remove what was built and cached, not .venv and not work_dirs
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
