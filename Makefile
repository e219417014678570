# Every command of the project. `make demo` and `make test` need only git, make and a Swift toolchain: each installs
# the Debian packages that are missing. Both build in one configuration, so that the second builds little.

SWIFT ?= swift
PREFIX ?= /usr/local
DESTDIR ?=
CONFIGURATION := release
# `swift test` would compile every library again for testable imports, which no test uses: tests are built as a product
# with the same flags as the programs, and only run by `swift test`.
BUILD := $(SWIFT) build --configuration $(CONFIGURATION)
BINARIES = $(shell $(BUILD) --show-bin-path)
PROGRAMS := tributary tributary-coordinator tributary-client
SOURCES := Package.swift Sources coordinator client Tests Fuzz

.DEFAULT_GOAL := help
.PHONY: help setup demo build test fuzz lint format install clean

help: ## list the commands
	@awk -F ': .*## ' '/^[a-z]+: .*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install the Debian packages that are missing, and check the Swift toolchain
	@scripts/setup

demo: setup ## a simulated federation on an embedded model, a minute or so
	$(BUILD) --product tributary
	$(BINARIES)/tributary demo

build: setup ## the three programs
	set -e; for program in $(PROGRAMS); do $(BUILD) --product $$program; done

test: build ## every test; TRIBUTARY_GOLDEN=DIR takes the expected values from elsewhere, FILTER=NAME runs some
	$(BUILD) --product tributaryPackageTests
	$(SWIFT) test --configuration $(CONFIGURATION) --skip-build --disable-xctest $(if $(FILTER),--filter '$(FILTER)')

fuzz: setup ## libFuzzer with the address sanitizer: make fuzz TARGET=update SECONDS=60
	TRIBUTARY_FUZZ=1 $(BUILD) --scratch-path .build-fuzz --product tributary-fuzz --sanitize=fuzzer --sanitize=address \
	    -Xswiftc -sanitize=fuzzer,address --disable-automatic-resolution
	scripts/fuzz .build-fuzz/$(CONFIGURATION)/tributary-fuzz $(or $(TARGET),update) $(or $(SECONDS),60)

lint: setup ## formatting, and that every import is a declared dependency
	$(SWIFT) format lint --strict --recursive $(SOURCES)
	set -e; for product in $(PROGRAMS) tributaryPackageTests; do \
	    $(BUILD) --product $$product --explicit-target-dependency-import-check error; done

format: ## format every Swift file in place
	$(SWIFT) format --in-place --recursive $(SOURCES)

install: build ## copy the programs to PREFIX/bin (default /usr/local)
	scripts/install "$(BINARIES)" "$(DESTDIR)$(PREFIX)" $(PROGRAMS)

clean: ## remove what was built
	rm -rf .build
