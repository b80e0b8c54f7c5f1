# The verbs of the repository. `make help` lists them; all of them work without a GPU.

CARGO   ?= cargo
PREFIX  ?= /usr/local
DESTDIR ?=
LIBDIR     ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include

TARGET  := $(or $(CARGO_TARGET_DIR),target)/release
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# The ABI's major number; build.rs puts the same one into the library.
SONAME  := libkavern.so.$(firstword $(subst ., ,$(VERSION)))

.DEFAULT_GOAL := help
.PHONY: help setup build demo model engine test soak interop bench gpu-test header kernels install clean

help: ## This list
	@echo "make VERB, where VERB is one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 12

setup: ## Install what is missing to build and test (Debian packages)
	@scripts/setup.sh

build: ## Build the library and the command, optimised
	$(CARGO) build --release --locked

demo: ## Replay made-up traffic with real bytes; then a real model answers three questions, all on the CPU
	@$(CARGO) build --release --locked --quiet
	@TARGET=$(abspath $(TARGET)) scripts/demo.sh

model: ## Fetch the model of examples/engine, 93 MB to load and 98 unpacked, into .cache/model
	@scripts/model.sh

engine: ## Build examples/engine, a small inference engine, and its tests, into .cache/engine
	$(CARGO) build --release --locked
	$(MAKE) -C examples/engine LIBRARY=$(abspath $(TARGET))

test: setup ## Format, lints, every test suite; ends with "N passed, N failed"
	@scripts/test.sh

soak: ## The long counts of the random and concurrent tests
	KAVERN_SOAK=1 $(CARGO) test --release --locked --no-fail-fast --lib --test model --test cache_soak --test sim \
		--test c_abi --test refusals --test soak -- --nocapture

interop: ## Tests against other projects' programs
	@echo "This version has no interop tests, so nothing is downloaded and nothing is run."

bench: ## Measure; docs/benchmarks.md says how to read it
	$(CARGO) bench --locked

header: ## Write include/kavern.h and the Python declarations anew from src/c_api
	KAVERN_BLESS=1 $(CARGO) test --release --locked --quiet --test header source_makes

# NVRTC compiles without a toolkit and without a host compiler. Two versions: the older one's output runs on older
# drivers, the newer one knows the newer GPUs.
kernels: ## Build kernels/prebuilt anew from kernels/*.cu (downloads NVRTC from PyPI)
	test -x .cache/kernels/bin/python || python3 -m venv .cache/kernels
	.cache/kernels/bin/python -m pip install -q --disable-pip-version-check \
		nvidia-cuda-nvrtc-cu12==12.4.127 nvidia-cuda-nvrtc==13.0.88
	.cache/kernels/bin/python scripts/kernels.py

gpu-test: ## Gather in .gpu all that .gpu/run.sh needs to test on a machine with a GPU and a driver only
	@scripts/gpu_test.sh

install: build ## Library, header, pkg-config file to PREFIX (default /usr/local), below DESTDIR if set
	install -d "$(DESTDIR)$(LIBDIR)/pkgconfig" "$(DESTDIR)$(INCLUDEDIR)"
	install -m 755 $(TARGET)/libkavern.so "$(DESTDIR)$(LIBDIR)/libkavern.so.$(VERSION)"
	ln -sf libkavern.so.$(VERSION) "$(DESTDIR)$(LIBDIR)/$(SONAME)"
	ln -sf $(SONAME) "$(DESTDIR)$(LIBDIR)/libkavern.so"
	install -m 644 $(TARGET)/libkavern.a "$(DESTDIR)$(LIBDIR)/libkavern.a"
	install -m 644 include/kavern.h "$(DESTDIR)$(INCLUDEDIR)/kavern.h"
	sed -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' -e 's|@VERSION@|$(VERSION)|' \
		scripts/kavern.pc.in > "$(DESTDIR)$(LIBDIR)/pkgconfig/kavern.pc"

clean: ## Remove everything that was built
	$(CARGO) clean
	rm -rf .cache .gpu
	find bindings -name __pycache__ -type d -prune -exec rm -rf {} +
