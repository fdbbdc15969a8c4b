# SPDX-License-Identifier: Apache-2.0
# What a developer or a curious operator runs. `make` alone lists the targets.

VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(BIN)/python
# Touched whenever deploy/setup.sh found or made the environment complete.
STAMP := $(VENV)/.steelyard-setup
C_FILES = $(shell find bpf bench -name '*.[ch]' ! -path 'bpf/kernel/*')

# Byte code is kept, whatever the caller's shell says: to compile its modules anew was a third of
# what a start of the agent costs, and the tests start hundreds.
export PYTHONDONTWRITEBYTECODE :=
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help setup demo test collected test-engines test-kubernetes test-deb test-image soak attack faults mutants lint types deb image lock sbom audit-deps bench bench-peers bench-ai bench-failover bench-scale bench-fleet bench-threats docs-site vagrant-up vagrant-down vagrant-test vagrant-peers docs docs-check format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

setup: ## install what is missing on this host, and the environment in .venv (root)
	@deploy/setup.sh --dev

demo: setup ## the whole story on real traffic in network namespaces, in a minute (root)
	@$(BIN)/lbctl lab demo

test: setup ## everything: lint, types, documentation, all tests, the kernel's included (root)
	@$(MAKE) -j 2 --output-sync types lint docs-check collected
	@echo "test: pytest, five files at a time"
	@$(BIN)/pytest -n 5 --durations 20

test-engines: setup ## real engines and clients through the balancer: half an hour, and gigabytes once (root)
	@$(PYTHON) -m tests.engines

test-kubernetes: setup ## discovery against a real API server, built from Debian's packages: 15 minutes and 4 GB once
	@$(PYTHON) -m tests.kubernetes.install
	@$(BIN)/pytest -m kubernetes tests/kubernetes

test-deb: setup ## the package and setup.sh on clean systems, booted in namespaces: 10 minutes, needs mmdebstrap (root)
	@command -v mmdebstrap >/dev/null || { echo "test-deb: apt-get install mmdebstrap" >&2; exit 1; }
	@$(BIN)/pytest -m deb -s tests/deb

test-image: image ## the container image, run by podman in namespaces: five minutes, needs podman and crun (root)
	@command -v podman >/dev/null || { echo "test-image: apt-get install podman crun" >&2; exit 1; }
	@$(BIN)/pytest -m image tests/container

soak: setup ## tests that take long: pairs of balancers in trouble under load, and more (root)
	@$(BIN)/pytest -m soak
	@echo "soak: properties, with examples that nobody has seen"
	@$(BIN)/pytest -q -n 3 -m hypothesis --hypothesis-profile any

lint: $(STAMP) ## ruff, clang-format, import rules
	@echo "lint: ruff"
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check || { echo "  remedy: make format" >&2; exit 1; }
	@echo "lint: clang-format"
	@$(BIN)/clang-format --dry-run --Werror $(C_FILES) || { echo "  remedy: make format" >&2; exit 1; }
	@echo "lint: import rules"
	@$(BIN)/lint-imports --no-cache >$(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log >&2; exit 1; }

# Compiles the tests once, where every worker of pytest would do it for itself.
collected: $(STAMP)
	@echo "test: collecting"
	@$(BIN)/pytest --collect-only -q -p no:xdist >$(VENV)/collected.log || { cat $(VENV)/collected.log >&2; exit 1; }

types: $(STAMP) ## mypy, strict
	@echo "types: mypy"
	@$(BIN)/mypy --no-error-summary

deb: $(STAMP) ## build dist/steelyard_VERSION_ARCH.deb for this distribution; ARCH=arm64: for the other architecture
	@deploy/deb/build "$(ARCH)" "$(REVISION)"

image: deb ## build the container image into dist/, without a daemon: needs buildah and mmdebstrap (root); BASE=image: on that one
	@deploy/container/build "$(BASE)"

# uv is fetched into build/, because only this needs it.
COMPILE := build/uv/bin/uv pip compile --quiet --python-version 3.12 --python-platform linux \
	--generate-hashes --no-annotate --no-header --no-emit-index-url --upgrade
lock: $(STAMP) ## renew deploy/*.lock: the Python packages of operators and those that build ours, with their hashes
	@[ -x build/uv/bin/uv ] || $(BIN)/pip install --quiet --target build/uv uv
	@{ echo "# What packages, image and setup.sh install (make lock). Hashes of all files of each release," && \
		echo "# so it serves both architectures and every Python that we support." && \
		$(COMPILE) pyproject.toml; } >build/requirements.lock
	@{ echo "# What setup.sh builds our own package with (make lock)." && \
		$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' | \
		$(COMPILE) -; } >build/build.lock
	@mv build/requirements.lock build/build.lock deploy

# The tools of both are fetched into build/, because only these need them.
sbom: $(STAMP) ## write dist/steelyard.cdx.json, the bill of materials (CycloneDX) of what the Debian package contains
	@[ -x build/cyclonedx/bin/cyclonedx-py ] || $(BIN)/pip install --quiet --target build/cyclonedx cyclonedx-bom
	@mkdir -p dist
	@PYTHONPATH=build/cyclonedx $(PYTHON) -W ignore::UserWarning -m cyclonedx_py requirements --pyproject pyproject.toml \
		--output-reproducible --output-file dist/steelyard.cdx.json deploy/requirements.lock
	@echo "sbom: dist/steelyard.cdx.json"

audit-deps: $(STAMP) ## look up the Python packages of the Debian package among known vulnerabilities (needs the internet)
	@[ -x build/pip-audit/bin/pip-audit ] || $(BIN)/pip install --quiet --target build/pip-audit pip-audit
	@PYTHONPATH=build/pip-audit $(PYTHON) -m pip_audit --strict --disable-pip --require-hashes \
		--requirement deploy/requirements.lock

docs: $(STAMP) ## write anew what is made from other files: references, quoted figures, dashboards, the client for Python
	@$(PYTHON) -m deploy.generated

# MkDocs and its theme are fetched into build/, because only this needs them.
docs-site: $(STAMP) ## write the documentation as a site with a search into build/site, which needs no network
	@[ -x build/mkdocs/bin/mkdocs ] || $(BIN)/pip install --quiet --target build/mkdocs mkdocs-material
	@rm -rf build/site-pages && mkdir -p build/site-pages
	@cp --parents $$(git ls-files '*.md' docs deploy bench/results vagrant LICENSE .ci bpf/include) build/site-pages
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=build/mkdocs $(PYTHON) -m mkdocs build --quiet --strict
	@echo "docs: build/site; to read it with its search: python3 -m http.server --directory build/site --bind 127.0.0.1"

docs-check: $(STAMP)
	@echo "docs: what is made from other files is up to date"
	@$(PYTHON) -m deploy.generated --check

attack: setup ## honest clients beside attackers, in every mode (root)
	@$(PYTHON) -m tests.packet.attack

faults: setup ## faults made by hand in labs: what the screen says, and when (root, ten minutes)
	@$(PYTHON) -m tests.faults

mutants: setup ## break the code on purpose, and see which tests notice: 201 breakages (root, half an hour)
	@$(PYTHON) -m tests.mutants

bench: setup ## measure: tables and JSON in bench/results (root)
	@$(PYTHON) -m bench

bench-peers: setup ## CPU per connection beside HAProxy, nginx and nftables (root, a quiet machine)
	@$(PYTHON) -m bench.peers

bench-ai: setup ## time to first token beside HAProxy and nginx, 40 minutes (root, a quiet machine)
	@$(PYTHON) -m bench.ai

bench-failover: setup ## outages beside keepalived, 20 minutes, and 10 of every core busy (root, a quiet machine)
	@$(PYTHON) -m bench.failover
	@$(PYTHON) -m bench.failover steady

bench-scale: setup ## what the agent costs with up to 10,000 backends, 10 minutes (root)
	@$(PYTHON) -m bench.scale

bench-fleet: setup ## how fast a change reaches 20 and 200 balancers, and faults of etcd, 8 minutes
	@$(PYTHON) -m bench.fleet

bench-threats: setup ## what detection finds, and whom it suspects wrongly: a simulation, 4 minutes
	@$(PYTHON) -m bench.threats

vagrant-up: setup ## a client, two balancers and three backends in virtual machines (vagrant/README.md)
	@$(PYTHON) -m vagrant.smoke up

vagrant-down: setup ## remove them
	@$(PYTHON) -m vagrant.smoke down

vagrant-test: setup ## everything that befalls balancers and backends, in virtual machines
	@$(PYTHON) -m vagrant.smoke

vagrant-peers: setup ## CPU per connection beside keepalived with IPVS, in the same machines
	@$(PYTHON) -m vagrant.peers

format: $(STAMP) ## put Python and C into our format
	@$(BIN)/ruff check --quiet --select I --fix
	@$(BIN)/ruff format --quiet
	@$(BIN)/clang-format -i $(C_FILES)

clean: ## remove the environment and all caches
	@rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml deploy/setup.sh
	@deploy/setup.sh --dev
