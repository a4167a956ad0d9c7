# make compress   set up, then compress the bundled model and show what it cost
# make test       set up, then run the tests
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
OUT ?= build/tiny-llama-85
export PYTHONSAFEPATH = 1

.PHONY: install compress test test-slow lint bench gpu clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

compress: install
	mkdir -p $(dir $(OUT))
	$(BIN)/compress examples/tiny-llama $(OUT) --keep 0.85 --overwrite \
	    --evaluation stdlib-held-out --evaluation-range 0:100
	$(BIN)/python examples/continue_text.py examples/tiny-llama $(OUT)

test: install
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -q -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: install
	$(BIN)/python bench/run_whole.py

# On a machine whose own python has torch with CUDA; nothing is downloaded.
gpu:
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps -e .
	$(PYTHON) -m pytest -q -m gpu
	$(PYTHON) bench/run_whole.py --device cuda

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .benchmarks .hypothesis
