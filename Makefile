# Everything that a fresh machine with python3 (3.11 or later, with venv) and make needs is set up here, in .venv.
PYTHON ?= python3
PIP := .venv/bin/pip --disable-pip-version-check
STAMP := .venv/.installed
# Processes that run tests beside each other. Many tests start two or more processes themselves.
TEST_PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all soak check format bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/'

# The package is editable, so sources need no new install; a change of what it depends on does.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Paceline needs Python 3.11 or later; run: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x .venv/bin/pip || $(PYTHON) -m venv .venv \
		|| { echo "python3 has no venv; on Debian: apt-get install python3-venv"; exit 1; }
	PIP_CONSTRAINT=constraints.txt $(PIP) install --quiet -e '.[dev]'
	@touch $@

setup: $(STAMP)  ## make the environment .venv

demo: $(STAMP)  ## run the world model, with and without a memory, and the language models, each over two groups
	.venv/bin/paceline run topologies/world-2.yaml --frames 100 --out out/demo
	.venv/bin/paceline run topologies/world-2-memory.yaml --frames 64 --seed 63 --out out/demo/memory --quiet
	.venv/bin/paceline run topologies/world-2.yaml --frames 64 --seed 63 --out out/demo/no-memory --quiet
	.venv/bin/python -m zoo.world.walk --memory out/demo/memory --without out/demo/no-memory --picture out/demo/walk.png
	.venv/bin/paceline generate topologies/speculate-2.yaml --max-tokens 70 --temperature 0.6 --seed 2 --prompt \
		"$$(printf 'import os\n\ndef find_files(folder, suffix):\n    """Return the names of all files')"

test: $(STAMP)  ## run the tests
	.venv/bin/pytest -q -n $(TEST_PROCESSES) --dist loadgroup -m "not exclusive and not exhaustive"
	.venv/bin/pytest -q -m "exclusive and not exhaustive"

test-all: test  ## run the tests, then the exhaustive ones
	.venv/bin/pytest -q -m exhaustive

soak: $(STAMP)  ## run what takes hours: 10,000 frames of every world; results go to bench/results
	.venv/bin/python bench/long.py

check: $(STAMP)  ## run ruff, mypy strict and the test of import directions
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest -q tests/test_imports.py

format: $(STAMP)  ## put the code into its format
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: $(STAMP)  ## run every benchmark; results go to bench/results
	.venv/bin/python bench/pipeline.py
	.venv/bin/python bench/world.py
	.venv/bin/python bench/speculation.py
	.venv/bin/python bench/tiers.py
	.venv/bin/python bench/certified.py
	.venv/bin/python bench/nvme.py
	.venv/bin/python bench/threads.py
	.venv/bin/python bench/start_up.py
	.venv/bin/python bench/memory.py

clean:  ## remove the environment, caches and outputs
	rm -rf .venv out .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
