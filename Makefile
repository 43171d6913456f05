# Everything a contributor types. The text behind `##` is the help that `make` alone prints.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
EXTRAS := train,data,ray,sweep,serve,export,report,post,dev
ARGS ?=
# Processes that run the tests, each file in one of them; 0 runs all in one, for a debugger.
JOBS ?= 2
DATA_PEERS := .benchmarks/data-peers

# What the extension is built from. A newer one of these rebuilds it, nothing else does.
RUST_SOURCES := $(shell find rust -name '*.rs') Cargo.toml $(wildcard Cargo.lock)
DEPENDENCIES := pyproject.toml constraints.txt
EXTENSION := $(VENV)/.extension

# In CI a lock file that no longer fits Cargo.toml is an error, not something to rewrite.
LOCKED := $(if $(CI),--locked)
# One interpreter for every build, so that cargo does not rebuild PyO3 in turns.
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.PHONY: help tools setup demo test test-slow sanitize lint fmt stubs bench bench-peers bench-compare golden \
	wheel size clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# A missing tool is found before the first download, and named in one sentence.
tools:
	@command -v cargo >/dev/null || { \
	  echo "error: rslm needs a Rust toolchain (cargo), see https://rustup.rs" >&2; exit 2; }
	@needed=$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml); \
	found=$$(rustc --version | cut -d ' ' -f 2); \
	[ "$$(printf '%s\n' "$$needed" "$$found" | sort -V | head -n 1)" = "$$needed" ] || { \
	  echo "error: rslm needs Rust $$needed or newer, found $$found (rustup update)" >&2; exit 2; }
	@command -v cc >/dev/null || { \
	  echo "error: rslm needs a C compiler named cc (Debian: apt install build-essential;" \
	    "macOS: xcode-select --install)" >&2; exit 2; }

$(BIN)/pip: | tools
	@for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  "$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "error: $$python cannot make virtual environments" \
	      "(Debian: apt install python3-venv)" >&2; exit 2; }; \
	  "$$python" -m venv $(VENV) && exit; exit 2; \
	done; \
	echo "error: rslm needs Python 3.11 or newer; name one with 'make PYTHON=/path/to/python3'" >&2; \
	exit 2

$(BIN)/maturin: | $(BIN)/pip
	@$(BIN)/python -m pip install --quiet -c constraints.txt maturin

# maturin installs what pyproject.toml names, builds the extension and links the package in place.
$(EXTENSION): $(RUST_SOURCES) $(DEPENDENCIES) | tools $(BIN)/maturin
	@test -d $(VENV)/lib/python3*/site-packages/torch || \
	  echo "Installing dependencies into $(VENV) (PyTorch for Linux is some 3 GB: a few minutes)."
	@PIP_QUIET=1 PIP_CONSTRAINT=constraints.txt \
	  $(BIN)/maturin develop --release $(LOCKED) --quiet --extras $(EXTRAS)
	@# Two packages install the module `fasttext`; this one can train, and must come last.
	@$(BIN)/python -c 'import fasttext, sys; sys.exit(not hasattr(fasttext, "train_supervised"))' || \
	  $(BIN)/python -m pip install --quiet --force-reinstall --no-deps -c constraints.txt fasttext-community
	@touch $@

setup: $(EXTENSION) ## Make .venv, install pinned dependencies, build the release extension

demo: setup ## Train a tokenizer and a language model from raw text in minutes (ARGS="--help" for options)
	@$(BIN)/rslm demo $(ARGS)

test: setup ## Run the Rust and Python tests, and every benchmark once, untimed
	cargo test --quiet $(LOCKED)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --benchmark-disable --durations=10 $(ARGS)

test-slow: setup ## Run the tests marked slow, and the property tests with many more examples
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --benchmark-disable \
	  -m "slow or hypothesis" --hypothesis-profile=slow --timeout=1800 --durations=10 $(ARGS)

# Leaks are not looked for: a test of a killed writer leaks on purpose.
sanitize: | tools ## Run the Rust tests under AddressSanitizer (needs a nightly toolchain)
	@rustup toolchain list 2>/dev/null | grep -q ^nightly || { \
	  echo "error: sanitize needs a nightly toolchain (rustup toolchain install nightly)" >&2; exit 2; }
	RUSTFLAGS=-Zsanitizer=address ASAN_OPTIONS=detect_leaks=0 cargo +nightly test --quiet --release \
	  --lib --target $$(rustc +nightly -vV | sed -n 's/^host: //p') --target-dir target/sanitize

lint: setup ## Check formatting, lints, types and the extension's stub
	cargo fmt --check
	cargo clippy --quiet $(LOCKED) --all-targets -- -D warnings
	cargo clippy --quiet $(LOCKED) --all-targets --features python,web -- -D warnings
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --quiet --check
	$(BIN)/mypy
	@$(MAKE) --no-print-directory stubs

stubs: setup ## Compare python/rslm/_rslm.pyi with the built extension
	$(BIN)/python -m mypy.stubtest --concise rslm._rslm

fmt: setup ## Format Rust and Python, and apply the safe lint fixes
	cargo fmt
	$(BIN)/ruff check --quiet --fix-only
	$(BIN)/ruff format --quiet

bench: setup ## Time the benchmarks (ARGS="benches/bench_training.py" for one file)
	$(BIN)/python -m pytest $(or $(ARGS),benches) --benchmark-only

bench-peers: setup ## Install the peers, compare with each: benches/results/{tokenizer,training}.md (ARGS="--quick")
	@$(BIN)/python -m pip install --quiet -c constraints.txt $$($(BIN)/python -c \
	  'import tomllib; \
	  project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print(*(p.replace(" ", "") for p in project["optional-dependencies"]["peers"]))')
	$(BIN)/python benches/peers.py $(ARGS)
	$(if $(filter-out --quick,$(ARGS)),,$(BIN)/python benches/training_peers.py $(ARGS))

# datatrove pins other versions of what rslm uses, and an old trafilatura: hence a second one.
$(DATA_PEERS)/.installed: benches/data_peers.txt | setup
	@$(BIN)/python -m venv $(DATA_PEERS)
	@$(DATA_PEERS)/bin/python -m pip install --quiet "pip>=24"
	@$(DATA_PEERS)/bin/python -m pip install --quiet -r $<
	@$(DATA_PEERS)/bin/python -m pip install --quiet --upgrade --target $(DATA_PEERS)/trafilatura trafilatura==2.3.1
	@touch $@

bench-data: setup $(DATA_PEERS)/.installed ## Compare each step on web data with the peers (ARGS="--write --pages FOLDER": results/data.md)
	$(BIN)/python benches/data_peers.py --peers-python $(DATA_PEERS)/bin/python $(ARGS)

bench-training: setup ## Time training beside transformers, if it is installed (ARGS="--rows float32")
	$(BIN)/python benches/training_peers.py $(ARGS)

bench-convergence: setup ## Tune AdamW, Muon and muP on books: benches/results/convergence.md (an hour; goes on where it stopped)
	$(BIN)/python benches/convergence.py $(ARGS)

bench-compare: setup ## Time the benchmarks and compare with the run before (kept in .benchmarks)
	$(BIN)/python -m pytest $(or $(ARGS),benches) --benchmark-only --benchmark-autosave \
	  $(if $(wildcard .benchmarks/*/*.json),--benchmark-compare)

golden: setup ## Rewrite the golden files in tests/fixtures; review the diff
	$(BIN)/python -m pytest tests -k golden --rewrite-golden $(ARGS)

wheel: | $(BIN)/maturin ## Build the wheel and the source distribution into dist/
	@$(BIN)/maturin build --quiet $(LOCKED) --profile dist --out dist
	@$(BIN)/maturin sdist --out dist
	@ls -l dist

size: ## Print lines per folder and file
	@find rust python tests benches -type f \
	  \( -name '*.rs' -o -name '*.py' -o -name '*.pyi' -o -name '*.toml' \) -exec wc -l {} + | \
	  awk '$$2 != "total" { print; folder = $$2; sub("/[^/]*$$", "", folder); sum[folder "/"] += $$1; all += $$1 } \
	    END { for (folder in sum) print sum[folder], folder; print all, "~total" }' | \
	  LC_ALL=C sort -k2 | awk '{ sub("~", "", $$2); printf "%7d  %s\n", $$1, $$2 }'

clean: ## Remove everything built or cached, but not .venv and not runs/
	rm -rf target dist .benchmarks .pytest_cache .hypothesis .mypy_cache .ruff_cache $(EXTENSION)
	rm -f python/rslm/*.so
	find python tests benches -name __pycache__ -type d -exec rm -rf {} +
