# `make demo` and `make test` set up all they need first; `make` alone lists the targets.

# The Python that makes the environment (3.10 to 3.13), and flags for its set-up:
#   make setup PYTHON=python3.12 SETUP_FLAGS=--cpu-ops
PYTHON ?= python3
SETUP_FLAGS ?=
# Flags for pytest: make test TEST_FLAGS="-k packaging"
TEST_FLAGS ?=
# Flags for the web page: make web WEB_FLAGS="--port 8000"
WEB_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo web test test-all lint docs wheel prove-wheel prove-tiling prove-mpvit prove-resume prove-scale \
	prove-estimate prove-export prove-gpu soak test-legacy clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup:  ## make .venv with the tested versions (3 to 8 minutes once, then no time)
	@$(PYTHON) tools/setup_env.py $(SETUP_FLAGS)

setup-dev:  ## the same, and what the tests, the checks of style and the documentation need
	@$(PYTHON) tools/setup_env.py --dev $(SETUP_FLAGS)

demo: setup  ## train, evaluate and draw on generated images, into work_dirs/demo/
	.venv/bin/python tools/demo.py

web: setup  ## serve a page that predicts images dropped on it, with the model of make demo
	.venv/bin/python tools/web.py $(WEB_FLAGS)

# A process of one thread per core. Files in their order: by the number of their tests, the slow ones
# with few tests would come last, when nothing is left for the other core.
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder

test: setup-dev  ## run the tests of what users rely on
	$(PYTEST) -m 'not slow' $(TEST_FLAGS)

test-all: setup-dev  ## run all tests, before a release
	$(PYTEST) $(TEST_FLAGS)

lint: setup-dev  ## check the code's style, its layout, and the types of models and operators
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

docs: setup-dev  ## build the documentation into work_dirs/docs; a warning is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet
	@echo 'written: work_dirs/docs/index.html'

wheel: setup-dev  ## build the wheel (by way of the source package) into dist/
	.venv/bin/python -m build --no-isolation

prove-tiling: setup-dev  ## predict a 6000 x 6000 image by tiles and measure the memory
	.venv/bin/python tests/inference/prove_tiling.py

prove-wheel: setup-dev  ## install the wheel into an empty environment, from scratch, and train with it
	PYTHON=$(PYTHON) bash tests/prove_wheel.sh

prove-mpvit: setup-dev  ## time MPViT and its memory against a plain transcription (minutes, quiet machine)
	PYTHONPATH=. .venv/bin/python tests/prove_mpvit.py

prove-resume: setup-dev  ## kill a training 30 times, resume it, compare to the bit (about 4 minutes)
	OMP_NUM_THREADS=1 .venv/bin/python tests/prove_resume.py --kills 30
	OMP_NUM_THREADS=1 .venv/bin/python tests/prove_resume.py --kills 10 --loop iter
	OMP_NUM_THREADS=1 .venv/bin/python tests/prove_resume.py --kills 5 --how TERM
	OMP_NUM_THREADS=1 .venv/bin/python tests/prove_resume.py --kills 3 --processes 2

prove-scale: setup-dev  ## time the check before training, and its memory, on annotations as large as COCO's
	PYTHONPATH=. .venv/bin/python tests/prove_scale.py

prove-estimate: setup-dev  ## compare estimates of memory with real training steps on the CPU (about 5 minutes)
	PYTHONPATH=. .venv/bin/python -W ignore tests/prove_estimate.py

prove-export: setup-dev  ## time exported files in onnxruntime, and in OpenVINO where it is installed
	PYTHONPATH=. .venv/bin/python -W ignore tests/prove_export.py

prove-gpu: setup-dev  ## compare the backbones on a GPU with float64, published form and others; parts of minutes
	PYTHONPATH=. .venv/bin/python tests/prove_gpu.py

soak: setup-dev  ## train for 30 minutes and watch the memory of every process
	.venv/bin/python tests/soak.py --minutes 30

test-legacy:  ## the tests under mmcv 2.1.0, mmdet 3.3.0, ... in .venv-legacy (compiles mmcv once)
	PYTHON=$(PYTHON) bash tests/legacy.sh $(TEST_FLAGS)

clean:  ## remove what was built and cached, not .venv and not work_dirs
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
