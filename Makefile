# Each target sets up what it needs in .venv, from hash-pinned locks, and again only when they change.
# Needs make, a POSIX shell and Python 3.11 or newer with its venv module; nothing else.
#
#   make demo  [ARGS=...]   the whole program on a simulated NVR and a local folder
#   make test  [ARGS=...]   the tests; ARGS go to pytest
#   make check              what must pass before a commit: format, lint, types, tests
#   make bench [ARGS=...]   what it costs, next to rclone, curl and Google's client (Linux)
#   make systemd-matrix     the service on the systemd of Debian 11 and 13 (root, debootstrap, patchelf)
#   make lock               resolve the dependencies anew (for developers)
#
# PYTHON=python3.13 chooses the interpreter; VENV=.venv-3.13 another place for its environment.

.DEFAULT_GOAL := help
.PHONY: help demo test check lint bench lock clean systemd-matrix
.DELETE_ON_ERROR:
SHELL := /bin/sh

PYTHON ?=
VENV ?= .venv
ARGS ?=
RUN ?= -m pytest -n auto --dist worksteal

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
# Build tools come from their own lock, so nothing unpinned is fetched to build a package.
INSTALL := $(PIP) install --no-build-isolation --use-pep517

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -n 11

demo: $(VENV)/.project
	$(BIN)/nvr-backup demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python $(RUN) $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(ARGS)

systemd-matrix: $(VENV)/.dev
	PYTEST='$(BIN)/python -m pytest' tests/systemd/matrix.sh $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage build dist

# The first suitable Python; a half-made environment is never taken for a whole one.
$(VENV)/.created:
	@set -eu; \
	for candidate in $(if $(PYTHON),'$(PYTHON)',python3 python3.14 python3.13 python3.12 python3.11); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    if ! "$$candidate" -c 'import venv, ensurepip' 2>/dev/null; then \
	      echo "$$candidate lacks its venv module: install it (Debian, Ubuntu: apt install python3-venv)," >&2; \
	      echo "or choose another interpreter with PYTHON=..." >&2; \
	      exit 1; \
	    fi; \
	    rm -rf '$(VENV)'; \
	    echo "Setting up $(VENV) with $$("$$candidate" --version) (once)"; \
	    "$$candidate" -m venv '$(VENV)'; \
	    touch '$@'; \
	    exit 0; \
	  fi; \
	done; \
	echo "nvr-backup needs Python 3.11 or newer, and found none$(if $(PYTHON), in PYTHON=$(PYTHON),)." >&2; \
	echo "Install one, or name it: make ... PYTHON=/path/to/python3.12" >&2; \
	exit 1

$(VENV)/.build: requirements-build.lock $(VENV)/.created
	$(PIP) install --require-hashes -r requirements-build.lock
	@touch $@

$(VENV)/.runtime: requirements.lock $(VENV)/.build
	$(INSTALL) --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.project: pyproject.toml $(VENV)/.runtime
	$(INSTALL) --no-deps --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.project
	$(INSTALL) --require-hashes -r requirements-dev.lock
	@touch $@

# --- locks: names, versions and hashes only, of every published file, so that they fit every platform
COMPILE := $(VENV)-lock/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	--no-emit-options $(ARGS)

$(VENV)-lock/.ready: $(VENV)/.created
	$(BIN)/python -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip --disable-pip-version-check --quiet install 'pip-tools>=7.4,<8'
	@touch $@

# The build lock holds, besides the project's own backend, editables (for --editable) and setuptools
# (for packages published as source only). Run `make lock` with the oldest Python that is supported,
# so that nothing it needs is left out. Debian 12 has 3.11.2; gcloud-aio-auth 5.5.2 asks for 3.11.3.
lock: $(VENV)-lock/.ready
	$(BIN)/python -c 'import tomllib; \
	  print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  > $(VENV)-lock/build.in
	printf 'editables\nsetuptools>=77\n' >> $(VENV)-lock/build.in
	printf 'gcloud-aio-auth<5.5.2\n' > $(VENV)-lock/oldest.in
	$(COMPILE) --output-file requirements-build.lock $(VENV)-lock/build.in
	$(COMPILE) --constraint $(VENV)-lock/oldest.in --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml
