# `make demo` and `make test` need nothing installed but Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that run the tests, of one thread each.
WORKERS ?= 2
READY := $(VENV)/.ready

.DEFAULT_GOAL := demo
.PHONY: demo test nightly oldest bench-small check docs dist format clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "antibackdoor needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/antibackdoor demo --out demo --overwrite

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# What takes hours: kills and refusals at every write of every command, real trainings, a minute of fuzzing a reader.
nightly: $(READY)
	$(BIN)/python -m pytest -m slow

# The tests with the oldest packages that pyproject.toml allows; what they call that is deprecated by now is no fault.
oldest: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt --editable '.[dev]'
	.venv-oldest/bin/python -m pytest -W ignore::DeprecationWarning

# Every cell anew: records say nothing of the code that made them.
bench-small: $(READY)
	rm -rf build/bench-small
	$(BIN)/antibackdoor bench benchmarks/grids/small.yaml --out build/bench-small --against benchmarks/results/small

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, into build/site; a link that leads nowhere is a fault.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --site-dir build/site

# Wheel and sdist into dist/, built apart from everything and checked.
dist: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[release]'
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-oldest demo build dist
