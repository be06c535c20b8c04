# `make demo` sets up and runs the demo sweep, and `make test` sets up and runs the tests. Both call `make setup`.
# If LIBTORCH is set in the environment, that libtorch is used unchanged. Otherwise, torch is installed into .venv, and
# .venv/libtorch is a link to it.

PYTHON ?= python3
TORCH := 2.11.0
VENV := .venv
BINARY := $(or $(CARGO_TARGET_DIR),target)/release/foldconv

.PHONY: setup setup-peer setup-browser setup-cuda demo build test lint soak fuzz bench-peer bench-report bench-sweep bench-data bench-graphs bench-detectors bench-recipes

setup: tools $(if $(LIBTORCH),,$(VENV)/.torch-$(TORCH))
	@sh .ci/check-libtorch "$(or $(LIBTORCH),$(VENV)/libtorch)" $(TORCH)

.PHONY: tools
tools:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.89 or newer, https://rustup.rs" >&2; exit 2; }
	@command -v $(or $(CXX),c++) >/dev/null || { echo "a C++ compiler is missing: install g++ or clang (Debian: apt-get install g++)" >&2; exit 2; }

# The stamp names the release, so that an environment with another release is updated.
$(VENV)/.torch-$(TORCH):
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' 2>/dev/null || \
	  { echo "Python 3.9 or newer with venv is missing (Debian: apt-get install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check torch==$(TORCH) numpy
	ln -sfn "$$($(VENV)/bin/python -c 'import os, torch; print(os.path.dirname(torch.__file__))')" $(VENV)/libtorch
	touch $@

# Packages that the tests compare with: torchvision's networks, a runtime for ONNX files, TensorBoard's reader. Users
# don't need them.
PEER := torchvision==0.26.0 timm==1.0.31 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.31.1 safetensors==0.8.0 tensorboard==2.21.0
PEER_STAMP = $(VENV)/.peer-$(subst $() ,-,$(subst ==,-,$(PEER)))

setup-peer: $(VENV)/.torch-$(TORCH) $(PEER_STAMP)

$(PEER_STAMP):
	$(VENV)/bin/python -m pip install --disable-pip-version-check torch==$(TORCH) $(PEER)
	touch $@

# Driver of Chromium for the tests of the report's page. Chromium itself is installed on the system (Debian: apt-get
# install chromium).
PLAYWRIGHT := 1.65.2

setup-browser: $(VENV)/.torch-$(TORCH) $(VENV)/.playwright-$(PLAYWRIGHT)

$(VENV)/.playwright-$(PLAYWRIGHT):
	$(VENV)/bin/python -m pip install --disable-pip-version-check playwright==$(PLAYWRIGHT)
	touch $@

# NVIDIA's headers for the cargo feature cuda-graphs, in addition to torch's own libraries.
CUDA_HEADERS := nvidia-cuda-crt==13.0.88

setup-cuda: $(VENV)/.torch-$(TORCH) $(VENV)/.$(CUDA_HEADERS)

$(VENV)/.$(CUDA_HEADERS):
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps $(CUDA_HEADERS)
	touch "$@"

build: setup
	cargo build --release

# Two operators with and without the bypass, and the plain convolution, two seeds each, on images generated in memory.
# Each trial uses two threads, as in the README's table, because the number of threads affects the last bits.
demo: build
	$(BINARY) sweep ablations/quickstart.yaml --out runs/quickstart --jobs 1 --threads 2

# The screenshot in the README, of the demo's report.
docs/report.png: demo setup-browser
	$(VENV)/bin/python tests/browser/picture.py "$$(command -v chromium)" $(CURDIR)/runs/quickstart/report.html $@

test: setup
	cargo test --no-fail-fast

lint: setup
	cargo fmt --check
	$(PYTHON) .ci/architecture
	$(PYTHON) .ci/comments
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace

# Compares the memory, open files and threads of 2,000 epochs and of 300 trials at the end with those at the start.
# Takes minutes.
soak: setup
	cargo test --test soak -- --ignored --nocapture --test-threads=1

# Measures the training images per second of foldconv and of PyTorch, in one interleaved run, and the time to read
# ResNet-50's weights.
bench-peer: build setup-peer
	$(VENV)/bin/python benches/load.py --foldconv $(BINARY)
	$(VENV)/bin/python benches/peer.py --foldconv $(BINARY)

# Measures the seconds that a report on a thousand finished trials takes. The trials are made up.
bench-report: setup
	cargo bench --bench report

# Measures the seconds to start, preview and report a sweep of 1,000 finished trials.
bench-sweep: build
	$(PYTHON) benches/sweep.py --foldconv $(BINARY)

# Measures the images per second of batches alone, of foldconv, torchvision and PyTorch. FOLDCONV_DATA holds CIFAR-10,
# and FOLDCONV_IMAGES holds the folder imagenet-sample.
bench-data: build setup-peer
	$(VENV)/bin/python benches/data.py --foldconv $(BINARY)
	$(VENV)/bin/python benches/files.py --foldconv $(BINARY)

# Measures a step with each optimizer and with a moving average, as multiples of SGD's, and prints the table of
# docs/training.md.
bench-recipes: build setup
	$(VENV)/bin/python benches/recipes.py --foldconv $(BINARY)

# Folds networks of timm and torchvision, and prints the table of docs/graphs.md.
bench-graphs: build setup-peer
	$(VENV)/bin/python benches/graphs.py --foldconv $(BINARY)

# Folds detectors of ultralytics, and prints another table of that page. `.venv/bin/python -m pip install ultralytics` first.
bench-detectors: build setup-peer
	$(VENV)/bin/python benches/detectors.py --foldconv $(BINARY)

# Feeds damaged files to each reader of foreign files, for FUZZ_SECONDS each; docs/reliability.md lists the failures
# that it looks for. Findings are written to fuzz/artifacts. It runs without the address sanitizer, because libtorch was
# not built for it; the readers are safe Rust except for two casts in stored.rs. Checkpoints are also compared with the
# result of torch.load.
FUZZ_SECONDS := 60
FUZZ := checkpoint model cifar svhn mnist config names sweep report pt2 onnx
FUZZ_FLAGS := -timeout=1 -max_len=8192 -rss_limit_mb=2048 -print_final_stats=1
fuzz: setup
	@cargo +nightly --version >/dev/null 2>&1 || \
	  { echo "a nightly Rust, which instruments for the fuzzer, is missing: rustup toolchain install nightly" >&2; exit 2; }
	@cargo fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is missing: cargo install cargo-fuzz --locked" >&2; exit 2; }
	FOLDCONV_MUTANTS=$$(($(FUZZ_SECONDS) * 300)) FOLDCONV_SEED=$$$$ cargo test --test pytorch files::what_torch_load_takes
	@for target in $(FUZZ); do mkdir -p fuzz/target/corpus/$$target && \
	  TMPDIR=$$(test -w /dev/shm && echo /dev/shm || echo /tmp) cargo +nightly fuzz run --sanitizer none $$target \
	    fuzz/target/corpus/$$target fuzz/corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) $(FUZZ_FLAGS) || exit 1; done
