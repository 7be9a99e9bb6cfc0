# `make demo` and `make test` work on a fresh machine with Python >= 3.11: they create .venv and install into it.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUNTIME := $(VENV)/.runtime
# TORCH=cpu installs torch from PyTorch's index of builds without CUDA, which are smaller by gigabytes on Linux.
TORCH ?=
INDEX := $(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu)
PYTEST = $(BIN)/python -m pytest
PYTEST_ARGS ?=
# Number of processes of `make test`.
PROCESSES ?= 2
# The first interpreter that is new enough; PYTHON=... on the command line overrides it.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

.PHONY: demo test test-all test-long test-robustness test-packages test-timm test-peers test-ray test-web docs coverage mutants lint fix install wheel test-wheel sbom audit clean
.DEFAULT_GOAL := help

help:
	@echo "make demo           install, then segment a synthetic scene into build/demo"
	@echo "make test           install, then run the tests (make test-all: including slow ones)"
	@echo "make test-long      the longer tests that make test leaves out"
	@echo "make test-robustness  injected faults, fuzzing and security in full; make test runs a sample"
	@echo "make test-packages  tests of the optional packages, each installed into its own folder beside .venv"
	@echo "make test-timm      tests of the models that need timm, with a torch, torchvision and timm of their own: 5.5 GB beside .venv"
	@echo "make test-peers     runs of other systems' packages in the benchmarks, with the torch of test-timm"
	@echo "make test-ray       tests of label jobs on Ray, which is installed into .venv"
	@echo "make test-web       tests of the web page in a browser; installs Gradio and playwright into .venv, needs Chromium"
	@echo "make docs           build the documentation into build/site, check links, run examples; installs MkDocs into .venv"
	@echo "make test-wheel     build wheel and sdist into dist, install the wheel alone and run it (make wheel: build only)"
	@echo "make sbom           dependencies of the wheel, as CycloneDX, in build/sbom.json"
	@echo "make audit          check every pinned version against the advisory database"
	@echo "make coverage       line and branch coverage of test-all, test-packages, test-timm, Ray and the web page"
	@echo "make mutants        mutation tests of metrics, run-length codes, the phrase map and job state"
	@echo "make lint           ruff, mypy, codespell and the language check, without changes (make fix: apply ruff's fixes)"
.PHONY: help

install: $(STAMP)

# The dependencies of the demo, without tools for development.
$(RUNTIME): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "openavs needs Python 3.11 or newer: install it or set PYTHON=/path/to/python" >&2; exit 2; }
	@echo "Installing openavs and its packages into $(VENV): 0.35 GB to download and 1.5 GB on disk with a torch without CUDA,"
	@echo "some GB more with one for NVIDIA GPUs, which PyPI has for Linux (smaller: make $(or $(MAKECMDGOALS),install) TORCH=cpu)."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(INDEX) -c constraints.txt -e .
	@touch $@

$(STAMP): $(RUNTIME)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(INDEX) -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(RUNTIME)
	$(BIN)/openavs demo --out build/demo
	@echo
	@echo "It works. Open build/demo/clips/demo/report.html in a browser and play build/demo/clips/demo/overlay.mp4."
	@echo "Your own video: source $(BIN)/activate, then openavs segment video.mp4"

# With a sample of tests/robustness.
test: $(STAMP)
	$(PYTEST) -n $(PROCESSES) -m "not slow and not long and not robustness and not alone" $(PYTEST_ARGS)
	$(PYTEST) -m alone tests/stages/translators/test_openai.py

# Tests that take long, and are not slow.
test-long: $(STAMP)
	$(PYTEST) -n $(PROCESSES) -m "long and not slow and not robustness" $(PYTEST_ARGS)

test-robustness: $(STAMP)
	$(PYTEST) -n $(PROCESSES) -m "not slow" tests/robustness $(PYTEST_ARGS)

test-all: $(STAMP)
	$(PYTEST) $(PYTEST_ARGS)

# Each optional package is installed into its own folder, which precedes .venv, without its declared dependencies: they
# would replace torch, numpy or torchvision, with which everything else is tested.
PACKAGES := $(notdir $(basename $(wildcard tests/packages/*.txt)))
test-packages: $(PACKAGES:%=build/packages/%/.installed)
	@failed=0; for name in $(PACKAGES); do echo "== $$name"; PYTHONPATH=$(CURDIR)/build/packages/$$name \
		$(PYTEST) -m "not slow" tests/packages/test_$$(echo $$name | tr - _).py $(PYTEST_ARGS) \
		|| failed=1; done; exit $$failed

build/packages/%/.installed: tests/packages/%.txt $(STAMP)
	rm -rf $(@D)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(@D) -r $<
	@touch $@

# PE-AV, OmDet-Turbo and EdgeTAM have parts that are timm's, which needs torchvision, whose build must be the one made for
# its torch: the three are installed into a folder that precedes .venv, with their dependencies at the versions of .venv.
test-timm: build/timm/.installed
	PYTHONPATH=$(CURDIR)/build/timm $(PYTEST) -m timm tests/stages $(PYTEST_ARGS)

build/timm/.installed: .ci/timm.txt $(STAMP)
	rm -rf $(@D)
	mkdir -p $(@D)
	grep -v '^torch==' constraints.txt > $(@D)/constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c $(@D)/constraints.txt --target $(@D) -r $<
	@touch $@

# The systems that eval/bench/compare_systems.py --peers real runs, beside the torch and torchvision of `make test-timm`.
test-peers: build/peers/.installed
	PYTHONPATH=$(CURDIR)/build/peers:$(CURDIR)/build/timm $(PYTEST) -m peers tests/eval/bench $(PYTEST_ARGS)

build/peers/.installed: .ci/peers.txt build/timm/.installed
	rm -rf $(@D)
	SAM2_BUILD_CUDA=0 PYTHONPATH=$(CURDIR)/build/timm $(BIN)/python -m pip install --disable-pip-version-check --quiet \
		--no-deps --no-build-isolation --target $(@D) -r $<
	@touch $@

# Ray is large and its tests start clusters, so they are not part of `make test`.
test-ray: $(VENV)/.ray build/packages/s3/.installed
	PYTHONPATH=$(CURDIR)/build/packages/s3 $(PYTEST) tests/jobs/test_ray.py $(PYTEST_ARGS)

$(VENV)/.ray: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[ray]"
	@touch $@

# Gradio is large and its tests use a browser; they are skipped without Chromium (CHROMIUM=/path/to/chromium).
test-web: $(VENV)/.web
	$(PYTEST) tests/web tests/cli/test_serve.py $(PYTEST_ARGS)

$(VENV)/.web: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[web]" playwright
	@touch $@

# Builds the site and checks every link and anchor; then runs the notebook and the longer pages.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest -m slow tests/docs $(PYTEST_ARGS)

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[docs]"
	@touch $@

# Not part of continuous integration: it takes about twice as long as the tests. Settings are in pyproject.toml.
coverage: $(VENV)/.quality $(VENV)/.ray $(VENV)/.web
	rm -rf build/coverage
	mkdir -p build/coverage
	-$(MAKE) -k test-all test-packages test-timm PYTEST="$(BIN)/coverage run -m pytest" # the report comes if a test fails, too
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Takes hours. MUTANTS='openavs.stages.detectors.*' selects a part; `.venv/bin/mutmut browse` shows the survivors.
MUTANTS ?=
mutants: $(VENV)/.quality
	$(BIN)/mutmut run $(MUTANTS)
	$(BIN)/mutmut results

$(VENV)/.quality: .ci/quality.txt $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -r $<
	@touch $@

# Texts that the language check of `make lint` covers.
PROSE := $(filter-out CHANGELOG.md,$(wildcard *.md)) docs examples pipelines eval \
	openavs tests scripts Makefile Dockerfile pyproject.toml .ci/audit.py .ci/run .github
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=eval/bench $(BIN)/mypy --explicit-package-bases eval/bench scripts
	MYPYPATH=eval/experiments $(BIN)/mypy eval/experiments
	$(BIN)/codespell
	$(BIN)/python .ci/check_language.py $(PROSE)

fix: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# ---------------------------------------------------------------------------------------------------------- releases

TOOLS := build/tools
$(TOOLS)/.installed: .ci/release.txt
	rm -rf $(TOOLS)
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -r $<
	@touch $@

# The wheel in dist/ is built from the sdist; build/direct has one built from the checkout, for comparison.
PACKED := pyproject.toml README.md LICENSE $(shell find openavs prompts pipelines eval -type f ! -name '*.pyc')
wheel: build/.wheel

build/.wheel: $(TOOLS)/.installed $(PACKED)
	rm -rf dist build/direct
	$(TOOLS)/bin/python -m build --no-isolation --outdir dist .
	$(TOOLS)/bin/python -m build --no-isolation --wheel --outdir build/direct .
	$(TOOLS)/bin/twine check --strict dist/*
	@touch $@

# The wheel alone, in a new environment, used from another directory.
CLEAN := build/clean
test-wheel: $(CLEAN)/.installed $(STAMP)
	OPENAVS_CLEAN=$(CURDIR)/$(CLEAN) $(BIN)/python -m pytest tests/release $(PYTEST_ARGS)

$(CLEAN)/.installed: build/.wheel constraints.txt
	rm -rf $(CLEAN)
	$(PYTHON) -m venv $(CLEAN)
	$(CLEAN)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt dist/*.whl
	@touch $@

# The software bill of materials (CycloneDX): the dependencies of the wheel in that environment, with licenses.
sbom: $(CLEAN)/.installed $(TOOLS)/.installed
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type library \
		--output-reproducible --of JSON -o build/sbom.json $(CLEAN)/bin/python

# Checks every pinned version against the advisory database; needs the network, so .ci/run does not include it.
audit: $(TOOLS)/.installed
	@$(TOOLS)/bin/python .ci/audit.py $(TOOLS)/bin/pip-audit

clean:
	rm -rf build dist mutants .pytest_cache .mypy_cache .ruff_cache
