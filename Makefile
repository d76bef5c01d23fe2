# `make demo` and `make test` set up what they need; nothing but Python >= 3.11, git and make is expected to be there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

.DELETE_ON_ERROR:
.PHONY: setup demo test check e2e lock clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"Rondo needs Python 3.11 to 3.13, {sys.executable} is {v[0]}.{v[1]}; run: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(VENV)/uv.txt
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup  ## three labelling rounds on scikit-learn's digits, in $(DEMO)/
	@test -e $(DEMO)/params.yaml || $(BIN)/rondo init $(DEMO) --source example://digits --labels ignore --labeller oracle --budget 100 --programme 300
	@$(BIN)/rondo cycle --workspace $(DEMO)
	@$(BIN)/rondo status --workspace $(DEMO)

test: setup  ## the default test suite: under 10 minutes on 2 cores
	$(PYTEST) -m "not slow and not gpu" tests

e2e: setup  ## what is too slow for `make test`
	$(PYTEST) -m "slow" tests
	$(PYTEST) -m "gpu" --stand-in tests/al_core

check: setup  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: setup  ## resolve the dependencies anew
	$(BIN)/uv pip compile --universal --generate-hashes --no-annotate --no-header --python-version 3.11 --group dev pyproject.toml -o requirements.lock --upgrade

clean:
	rm -rf $(VENV) $(DEMO) example
