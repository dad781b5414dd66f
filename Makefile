# Each target sets up .venv by itself; only make and a Python 3.11 to 3.13 with its venv module are needed.

.PHONY: demo test lint bench

demo: .venv/.installed
	.venv/bin/python -m eval.compare

test: .venv/.installed
	.venv/bin/python -m pytest -q -n 2 --dist loadfile tests

lint: .venv/.installed
	.venv/bin/ruff check .

bench: .venv/.installed
	.venv/bin/python -m eval.bench

.venv/.installed: requirements.txt pyproject.toml
	@for python in python3.13 python3.12 python3.11 python3; do \
		$$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || continue; \
		echo "installing into .venv with $$($$python --version); the first time downloads a few gigabytes"; \
		exec $$python -m venv .venv; \
	done; \
	echo "error: no Python 3.11 to 3.13 with its venv module was found (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@
