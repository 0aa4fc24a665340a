# Every target works from a fresh clone; the first use makes .venv.
PYTHON := .venv/bin/python
NO_BENCHMARKS := $(patsubst %,benchmarks/%.py,goals mixed peer rows shapes table)

.PHONY: help lint test slow docs bench clean

help:  ## Show the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

$(PYTHON):
	python3 -m venv .venv
	.venv/bin/pip install -q -e ".[test]"

lint: $(PYTHON)  ## Style, format and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test: $(PYTHON)  ## All tests but the slow ones
	$(PYTHON) -m pytest -n 2

slow: $(PYTHON)  ## The slow tests
	$(PYTHON) -m pytest -m slow

docs: $(PYTHON)  ## Write docs/measured.md and the README's table from benchmarks/results
	$(PYTHON) benchmarks/table.py

bench: $(PYTHON)  ## Measure this machine again (the machine should be otherwise idle), then the table
	for script in $(filter-out $(NO_BENCHMARKS),$(wildcard benchmarks/*.py)); do $(PYTHON) $$script || exit 1; done
	$(PYTHON) benchmarks/table.py

clean:  ## Remove what was built, keep .venv
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
