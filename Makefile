# `make demo` sets up and runs the main job, `make test` sets up and passes the tests; `make setup` is what both call.
# A LIBTORCH in the environment is used as it is; otherwise .venv gets torch and .venv/libtorch is a link to it.

PYTHON ?= python3
TORCH := 2.11.0
VENV := .venv
BINARY := $(or $(CARGO_TARGET_DIR),target)/release/foldconv

.PHONY: setup setup-peer setup-browser setup-cuda demo build test lint soak fuzz bench-peer bench-report bench-sweep bench-data

setup: tools $(if $(LIBTORCH),,$(VENV)/.torch-$(TORCH))
	@sh .ci/check-libtorch "$(or $(LIBTORCH),$(VENV)/libtorch)" $(TORCH)

.PHONY: tools
tools:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.89 or newer, https://rustup.rs" >&2; exit 2; }
	@command -v $(or $(CXX),c++) >/dev/null || { echo "a C++ compiler is missing: install g++ or clang (Debian: apt-get install g++)" >&2; exit 2; }

# The stamp names the release, so that an environment with another one is brought up to date.
$(VENV)/.torch-$(TORCH):
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' 2>/dev/null || \
	  { echo "Python 3.9 or newer with venv is missing (Debian: apt-get install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check torch==$(TORCH) numpy
	ln -sfn "$$($(VENV)/bin/python -c 'import os, torch; print(os.path.dirname(torch.__file__))')" $(VENV)/libtorch
	touch $@

# What the tests compare with: torchvision's networks, a program that runs ONNX files, TensorBoard's reader. Users don't need it.
PEER := torchvision==0.26.0 onnxruntime==1.31.1 safetensors==0.8.0 tensorboard==2.21.0
PEER_STAMP = $(VENV)/.peer-$(subst $() ,-,$(subst ==,-,$(PEER)))

setup-peer: $(VENV)/.torch-$(TORCH) $(PEER_STAMP)

$(PEER_STAMP):
	$(VENV)/bin/python -m pip install --disable-pip-version-check torch==$(TORCH) $(PEER)
	touch $@

# What drives Chromium in the tests of the report's page. Chromium itself is the system's (Debian: apt-get install chromium).
PLAYWRIGHT := 1.65.2

setup-browser: $(VENV)/.torch-$(TORCH) $(VENV)/.playwright-$(PLAYWRIGHT)

$(VENV)/.playwright-$(PLAYWRIGHT):
	$(VENV)/bin/python -m pip install --disable-pip-version-check playwright==$(PLAYWRIGHT)
	touch $@

# NVIDIA's headers for the cargo feature cuda-graphs, beside torch's own libraries.
CUDA_HEADERS := nvidia-cuda-crt==13.0.88

setup-cuda: $(VENV)/.torch-$(TORCH) $(VENV)/.$(CUDA_HEADERS)

$(VENV)/.$(CUDA_HEADERS):
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps $(CUDA_HEADERS)
	touch "$@"

build: setup
	cargo build --release

# Two operators with and without the bypass, and the plain convolution, two seeds each, on images made in memory. Two threads a trial,
# since the number of threads decides the last bits, so that the table is the README's.
demo: build
	$(BINARY) sweep ablations/quickstart.yaml --out runs/quickstart --jobs 1 --threads 2

# The README's picture, of the demo's report.
docs/report.png: demo setup-browser
	$(VENV)/bin/python tests/browser/picture.py "$$(command -v chromium)" $(CURDIR)/runs/quickstart/report.html $@

test: setup
	cargo test

lint: setup
	cargo fmt --check
	$(PYTHON) .ci/architecture
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace

# What 2,000 epochs and 300 trials hold at their end, beside what they held at their start: minutes.
soak: setup
	cargo test --test soak -- --ignored --nocapture --test-threads=1

# Images a second of training, ours over PyTorch's, in one interleaved run; and the time to read ResNet-50's weights.
bench-peer: build setup-peer
	$(VENV)/bin/python benches/load.py --foldconv $(BINARY)
	$(VENV)/bin/python benches/peer.py --foldconv $(BINARY)

# Seconds of a report on a thousand finished trials, which are made up.
bench-report: setup
	cargo bench --bench report

# Seconds to start a sweep of 1,000 trials that are done, to preview it and to report on it.
bench-sweep: build
	$(PYTHON) benches/sweep.py --foldconv $(BINARY)

# Images a second of the batches alone, ours beside torchvision's and PyTorch's. FOLDCONV_DATA holds
# CIFAR-10, FOLDCONV_IMAGES the folder imagenet-sample.
bench-data: build setup-peer
	$(VENV)/bin/python benches/data.py --foldconv $(BINARY)
	$(VENV)/bin/python benches/files.py --foldconv $(BINARY)

# Feeds each reader of foreign files with damaged ones, so many seconds each; docs/reliability.md says what must not happen. What is found
# lies in fuzz/artifacts. Without the address sanitizer, which libtorch was not built for: the readers are safe Rust but for two casts in
# stored.rs. Checkpoints are also compared with what torch.load makes of them.
FUZZ_SECONDS := 60
FUZZ := checkpoint model cifar svhn mnist config names sweep report
FUZZ_FLAGS := -timeout=1 -max_len=8192 -rss_limit_mb=2048 -print_final_stats=1
fuzz: setup
	@cargo +nightly --version >/dev/null 2>&1 || \
	  { echo "a nightly Rust, which instruments for the fuzzer, is missing: rustup toolchain install nightly" >&2; exit 2; }
	@cargo fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is missing: cargo install cargo-fuzz --locked" >&2; exit 2; }
	FOLDCONV_MUTANTS=$$(($(FUZZ_SECONDS) * 300)) FOLDCONV_SEED=$$$$ cargo test --test pytorch files::what_torch_load_takes
	@for target in $(FUZZ); do mkdir -p fuzz/target/corpus/$$target && \
	  TMPDIR=$$(test -w /dev/shm && echo /dev/shm || echo /tmp) cargo +nightly fuzz run --sanitizer none $$target \
	    fuzz/target/corpus/$$target fuzz/corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) $(FUZZ_FLAGS) || exit 1; done
