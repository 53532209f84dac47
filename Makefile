# Each from nothing: `make calibrate` (the main job), `make dashboard` (look at its results) and `make test`.
# `make calibrate STUDY=studies/helios_reference.yaml` calibrates on another study; so does `make dashboard STUDY=...`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STUDY ?= studies/reference.yaml
NAME := $(basename $(notdir $(STUDY)))

.PHONY: calibrate dashboard test browser lint mutants clean

calibrate: $(VENV)/.calibrate
	$(BIN)/scope-calibrate run $(STUDY)
	$(BIN)/scope-calibrate verify profiles/$(NAME).json $(STUDY)

dashboard: $(VENV)/.dashboard
	$(BIN)/scope-calibrate dashboard --storage sqlite:///runs/$(NAME).db $(OPTIONS)

test: $(VENV)/.dev browser lint
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The browser tests need Debian's chromium; where it cannot be installed they are skipped, and say so.
browser:
	@command -v chromium > /dev/null \
		|| { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq > /dev/null \
			&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium > /dev/null; } \
		|| echo "chromium could not be installed: the browser tests will be skipped" >&2

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Small changes to the code that decides, each of which some test must notice; docs/mutants.md. Hours on two cores:
# MUTANTS='scope_runtime.policy.*' tries those of one file.
mutants: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/mutmut run $(MUTANTS)
	@$(BIN)/mutmut results --all true | awk -F ': ' '$$2 != "not checked" { \
		sub(/\.x[_ǁ][^.]*$$/, "", $$1); all[$$1]++; killed[$$1] += $$2 == "killed" || $$2 == "timeout" } \
		END { for (file in all) print file ": " killed[file] " of " all[file] " killed" }' | sort

# The stamps say which extras the environment holds; a change of what is asked for installs again.
$(VENV)/.calibrate: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[calibrate]'
	touch $@

$(VENV)/.dashboard: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[calibrate,dashboard]'
	touch $@ $(VENV)/.calibrate

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[calibrate,dashboard,postgres,dev]'
	touch $@ $(VENV)/.calibrate $(VENV)/.dashboard

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist mutants .pytest_cache .mypy_cache .ruff_cache
