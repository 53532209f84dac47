# Two commands, each from nothing: `make calibrate` (the main job) and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: calibrate test lint clean

calibrate: $(VENV)/.calibrate
	$(BIN)/scope-calibrate run studies/reference.yaml
	$(BIN)/scope-calibrate verify profiles/reference.json

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The stamps say which extras the environment holds; a change of what is asked for installs again.
$(VENV)/.calibrate: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[calibrate]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[calibrate,postgres,dev]'
	touch $@ $(VENV)/.calibrate

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
