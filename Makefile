# `make quickstart` and `make test` need python >= 3.11 and nothing else: each makes the environment first.
PYTHON ?= python3
PIP := .venv/bin/python -m pip install --disable-pip-version-check --quiet
EPOCHS ?= 12

.PHONY: quickstart test slow lint clean

quickstart: .venv/installed
	.venv/bin/python scripts/quickstart.py --epochs $(EPOCHS)

test: .venv/installed
	.venv/bin/python -m pytest -m "not slow" -n 2

slow: .venv/installed
	.venv/bin/python -m pytest -m slow

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# PIP_FIND_LINKS is cleared because torch and torchvision must come from the same place to load together
.venv/installed: pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	env -u PIP_FIND_LINKS $(PIP) -e '.[pinned,dev]'
	touch $@

clean:
	rm -rf .venv data/patches
