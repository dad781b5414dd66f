# Each target sets up .venv by itself; only make and a Python 3.11 to 3.13 with its venv module are needed.

.PHONY: demo test test-lowest lint bench results lectures kills mutations

PYTHON := .venv/bin/python
PRODUCT := git ls-files '*.py' ':!tests' ':!common/picturebook'

demo: .venv/.installed
	$(PYTHON) -m eval.compare

test: .venv/.installed
	$(PYTHON) -m pytest -q -n 2 --dist loadfile tests

lint: .venv/.installed
	.venv/bin/ruff check .
	@echo "lines of Python: product $$($(PRODUCT) | xargs cat | wc -l), picturebook $$(git ls-files \
		'common/picturebook/*.py' | xargs cat | wc -l), tests $$(git ls-files 'tests/*.py' | xargs cat | wc -l)"

bench: .venv/.installed
	$(PYTHON) -m eval.bench

# What is missing or stale of tier 1 (some 15 hours on two cores), then every table, verdict and figure.
results: .venv/.installed
	$(PYTHON) -m eval.experiments --run --render

lectures: .venv/.installed
	$(PYTHON) -m eval.lectures

kills: .venv/.installed
	$(PYTHON) -m tests.kills --times 10

mutations: .venv/.installed
	$(PYTHON) -m tests.test_mutations

.venv/.installed: requirements.txt constraints.txt pyproject.toml
	@for python in python3.13 python3.12 python3.11 python3; do \
		$$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || continue; \
		echo "installing into .venv with $$($$python --version); the first time downloads a few gigabytes"; \
		exec $$python -m venv .venv; \
	done; \
	echo "error: no Python 3.11 to 3.13 with its venv module was found (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# The lowest versions that requirements.txt admits, in an environment of their own.
test-lowest: .venv/.installed
	sed -E 's/>=([^,# ]+).*/==\1/' requirements.txt > .venv/lowest.txt
	python3 -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -r .venv/lowest.txt
	.venv-lowest/bin/python -m pytest -q -n 2 --dist loadfile tests
