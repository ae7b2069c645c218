# `make quickstart` and `make test` need python >= 3.11 and nothing else: each makes the environment first.
PYTHON ?= python3
PIP := .venv/bin/python -m pip install --disable-pip-version-check --quiet
EPOCHS ?= 12
SEEDS ?= 5
STUDY_EPOCHS ?= 4
RATES ?= 1
METHODS ?=
STUDY ?= studies/patches
# Memory that is freed is kept: on the CPU, small networks would spend a good part of each step on fetching it anew
export GLIBC_TUNABLES ?= glibc.malloc.trim_threshold=2147483648:glibc.malloc.mmap_max=0

.PHONY: quickstart study test slow lint detectron2 clean

quickstart: .venv/installed
	.venv/bin/python scripts/quickstart.py --epochs $(EPOCHS)

# The study of the photographs in docs/results.md; METHODS, SEEDS and STUDY_EPOCHS make it shorter; RATES tries rates
study: .venv/installed
	.venv/bin/python scripts/cut_patches.py
	.venv/bin/python study.py data/patches $(if $(METHODS),--methods $(METHODS)) --seeds $(SEEDS) --epochs $(STUDY_EPOCHS) --rates $(RATES) \
		--arch resnet18 --width 0.125 --size 32 --area 0.15 0.6 --jitter 0.5 --grayscale 0 --scored_images 300 --at_once 2 \
		--dump_path $(STUDY)

test: .venv/installed
	.venv/bin/python -m pytest -m "not slow" -n 2

# The Python files of detectron2 0.6, without its compiled part: enough to test our configurations and weights on
detectron2: .detectron2/installed

.detectron2/installed: .venv/installed
	$(PIP) 'setuptools<81' wheel ninja 'pycocotools>=2.0.2' termcolor 'yacs>=0.1.8' tabulate cloudpickle omegaconf hydra-core \
		'iopath>=0.1.7,<0.1.10' 'fvcore>=0.1.5,<0.1.6'
	mkdir -p .detectron2
	.venv/bin/python -m pip download --quiet --no-deps --no-build-isolation --no-binary :all: -d .detectron2 pb1-detectron2==0.6
	tar -xzf .detectron2/pb1-detectron2-0.6.tar.gz -C .detectron2
	touch $@

slow: .venv/installed
	.venv/bin/python -m pytest -m slow -n 2

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# PIP_FIND_LINKS is cleared because torch and torchvision must come from the same place to load together
.venv/installed: pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	env -u PIP_FIND_LINKS $(PIP) -e '.[pinned,dev]'
	$(PIP) --no-deps trackio==0.43.0
	touch $@

clean:
	rm -rf .venv .detectron2 data/patches
