# make demo, make test, make test-fast, make notebooks, make lint, make types,
# make docs, make package, make format: each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# By its path: the folder above a checkout called cxjax would hide the package.
EDITABLE = --config-settings editable_mode=compat

.PHONY: demo test test-fast notebooks lint types docs package format clean

# One stamp per set of packages, anew when their list changes.
$(VENV)/run: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("cxjax needs Python 3.11 or later") if sys.version_info < (3, 11) else 0'
	@echo 'Installs JAX and other packages into $(VENV), once: some minutes.'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

$(VENV)/dev: $(VENV)/run pyproject.toml
	@echo 'Installs the packages of the tests into $(VENV), once: some minutes.'
	$(BIN)/pip install --quiet -e '.[test]' $(EDITABLE)
	touch $@

$(VENV)/docs: $(VENV)/run pyproject.toml
	@echo 'Installs the packages of the site into $(VENV), once: some minutes.'
	$(BIN)/pip install --quiet -e '.[docs]' $(EDITABLE)
	touch $@

demo: $(VENV)/run
	$(BIN)/python launch.py --config=experiments/parity_mlp.py --workdir=runs/demo --compare=supervised,one_shot,progressive,extracted

test: $(VENV)/dev
	$(BIN)/python -m pytest

# What a developer wants after every change.
test-fast: $(VENV)/dev
	$(BIN)/python -m pytest -m 'not slow'

notebooks: $(VENV)/dev
	$(BIN)/python -m experiments.notebooks.run --tiny

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/dev
	$(BIN)/mypy

docs: $(VENV)/docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs docs/_build/html
	@echo 'Open docs/_build/html/index.html.'

package: $(VENV)/run
	$(BIN)/pip install --quiet build twine
	rm -rf dist
	$(BIN)/python -m build --outdir dist > /dev/null
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tests/try_wheel.py dist

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs docs/_build docs/notebooks build dist
