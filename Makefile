# make demo    builds the wheel and runs a real program on it, beside the standard library
# make bench   measures it beside the standard library and other libraries
#              (ONLY=queue,pool_apply  ROUNDS=3  RIVALS=multiprocessing,phalanx)
# make bench-scale   shows how cost grows: 10 million items, 1,000 processes, messages of 4 GiB
# make bench-rust     the same for the crate: criterion, beside other crates
# make bench-compare  counts instructions, to compare one commit with another
# make test    formats, lints and tests everything: what CI does
PYTHON ?= python3

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# One interpreter for every build, so that none undoes another's work.
export PYO3_PYTHON := $(BIN)/python
export PYO3_BUILD_EXTENSION_MODULE := 1
export PYTHONPATH :=
unexport PYTHONHOME

EXAMPLES := $(patsubst crates/phalanx/examples/%.rs,%,$(wildcard crates/phalanx/examples/*.rs))
# A Python test process of the package as it lies in the tree, with the extension beside it.
PYTEST := PYTHONPATH=$(CURDIR)/python $(BIN)/python -X faulthandler -m pytest

.PHONY: demo wheel bench bench-scale bench-rust bench-compare test lint test-rust test-python test-conformance extension libraries conformance hangs loom soak fuzz abi3 fmt clean

demo: wheel
	$(BIN)/python demo/demo.py

wheel: $(VENV)/made
	$(BIN)/python -m pip install --quiet "$$(grep ^maturin requirements-dev.txt)"
	rm -rf target/wheels
	$(BIN)/maturin build --release --locked --interpreter $(BIN)/python --out target/wheels
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps target/wheels/*.whl
	$(BIN)/python -m pip install --quiet "$$(grep ^cloudpickle requirements-dev.txt)"

ROUNDS ?= 5
bench: wheel $(VENV)/rivals
	$(BIN)/python benchmarks/run.py --rounds $(ROUNDS) --only "$(ONLY)" --rivals "$(RIVALS)"

# ARGS="--only items,message --largest 1000000"
bench-scale: wheel $(VENV)/rivals
	$(BIN)/python benchmarks/scale.py $(ARGS)

# The crate beside other crates and the machine's limits; ARGS is for criterion.
RUST_BENCHMARKS := --manifest-path benchmarks/rust/Cargo.toml --target-dir target/bench
bench-rust:
	cargo bench --locked $(RUST_BENCHMARKS) --bench peers -- $(ARGS)

# Instructions of fixed work, beside those stored with an earlier commit; ARGS=--save stores them.
bench-compare: wheel
	cargo build --locked --release $(RUST_BENCHMARKS) --bin counted
	$(BIN)/python benchmarks/compare.py --rust target/bench/release/counted $(ARGS)

test: lint test-rust loom test-python test-conformance

lint: $(VENV)/tools
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p phalanx-python --features abi3 -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test-rust: $(VENV)/tools
	# Built first, so that the watchdogs see the tests alone.
	cargo test --locked -p phalanx --lib --tests --no-run
	# One at a time: they fork, and a fork in one test is seen by what another has in hand.
	RUST_TEST_THREADS=1 timeout --verbose 600 cargo test --locked -p phalanx --lib --tests
	cargo test --locked -p phalanx --features crash-points --test crash --no-run
	timeout --verbose 900 cargo test --locked -p phalanx --features crash-points --test crash
	timeout --verbose 300 cargo test --locked -p phalanx --doc
	@for example in $(EXAMPLES); do \
	    echo "example $$example"; \
	    timeout 120 cargo run --quiet --locked -p phalanx --example $$example -- README.md CHANGELOG.md || exit 1; \
	done

test-python: extension
	$(PYTEST) $(TESTS)

# The extension in the development profile, beside the package in the tree.
extension: $(VENV)/tools
	cargo build --locked -p phalanx-python
	$(BIN)/python scripts/place_extension.py target/debug/libphalanx_python.so

# Unmodified programs with other people's libraries, the large ones too.
libraries: extension
	$(BIN)/python -m pip install --quiet -r tests/libraries/requirements-heavy.txt
	$(PYTEST) -m "heavy or not heavy" tests/libraries

# The interpreter's own multiprocessing suite, where it is installed; ARGS="--start fork --match TestPool".
conformance: extension
	PYTHONPATH=$(CURDIR)/python $(BIN)/python tests/conformance/run.py --module phalanx \
	    --exempt tests/conformance/exempt.txt $(ARGS)

test-conformance: extension
	@if $(BIN)/python -c 'import sys, importlib.util as u; sys.exit(not (u.find_spec("test") and u.find_spec("test._test_multiprocessing")))'; then \
	    $(MAKE) --no-print-directory conformance; \
	else \
	    echo "CPython's multiprocessing suite was NOT RUN: $$($(BIN)/python -V) was installed without its package 'test'"; \
	fi

# The ways in which multiprocessing hangs, each as a script; ARGS="--start fork --case queue_order".
hangs: extension
	PYTHONPATH=$(CURDIR)/python $(BIN)/python tests/hangs/run.py --module phalanx $(ARGS)

# Locks, semaphores, conditions, events, barriers, bells under all schedules that loom finds.
loom:
	timeout 600 cargo run --release --locked -p phalanx-model --example models -- $(ARGS)

# Long runs of what `make test` tries briefly: damaged arenas, streams and encoded values.
CASES ?= 20000
fuzz: extension
	PHALANX_DAMAGE_ROUNDS=$(CASES) cargo test --locked -p phalanx --test damage
	PROPTEST_CASES=$(CASES) cargo test --locked --release -p phalanx --test wire
	PHALANX_FUZZ_ROUNDS=$(CASES)0 $(PYTEST) --timeout 0 tests/python/test_codec.py

# Kills processes at random for MINUTES, and accounts for every message and task.
MINUTES ?= 10
soak: extension
	PYTHONPATH=$(CURDIR)/python $(BIN)/python scripts/soak.py --minutes $(MINUTES) $(ARGS)

# One wheel for Python 3.11 and later.
abi3: $(VENV)/made
	$(BIN)/python -m pip install --quiet "$$(grep ^maturin requirements-dev.txt)"
	$(BIN)/maturin build --release --locked --features abi3 --interpreter $(BIN)/python --out target/wheels-abi3

fmt: $(VENV)/tools
	cargo fmt --all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf target $(VENV) .mypy_cache .pytest_cache .ruff_cache python/phalanx/_phalanx*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/made:
	$(PYTHON) scripts/make_venv.py $(VENV)
	touch $@

$(VENV)/rivals: $(VENV)/made benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet -r benchmarks/requirements.txt
	touch $@

$(VENV)/tools: $(VENV)/made requirements-dev.txt tests/libraries/requirements.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt -r tests/libraries/requirements.txt
	touch $@
