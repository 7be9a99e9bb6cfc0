# `make demo` and `make test` each work alone on a fresh machine with Python >= 3.11: they make .venv and install into it.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST = $(BIN)/python -m pytest
PYTEST_ARGS ?=
# Processes that `make test` runs tests in.
PROCESSES ?= 2
# The first interpreter that runs and is new enough; PYTHON=... on the command line wins.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

.PHONY: demo test test-all test-packages test-ray test-web docs coverage mutants lint fix install wheel test-wheel sbom audit clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      install, then segment a scene of the synthetic world into build/demo"
	@echo "make test      install, then run the tests (make test-all: with the slow ones)"
	@echo "make test-packages  the same for the optional packages, each in a folder of its own beside .venv"
	@echo "make test-ray  the tests of label jobs on Ray, which it installs into .venv"
	@echo "make test-web  the tests of the web page in a browser; installs Gradio and playwright into .venv, chromium is yours"
	@echo "make docs      the docs site into build/site, its links checked, its notebook run; installs MkDocs into .venv"
	@echo "make test-wheel  builds wheel and sdist into dist, installs the wheel alone and runs it; make wheel: without"
	@echo "make sbom      what the wheel brings along, as CycloneDX, in build/sbom.json"
	@echo "make audit     asks the advisory database about every pinned version"
	@echo "make coverage  test-all and test-packages with Ray and the page, and the lines and branches that they reach"
	@echo "make mutants   tests the tests: small faults in metrics, run-length codes, the phrase map and what jobs resume from"
	@echo "make lint      ruff, mypy and the language check, changing nothing; make fix: fixes what ruff can"
.PHONY: help

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "openavs needs Python 3.11 or newer: install it or say PYTHON=/path/to/python" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/openavs demo --out build/demo

test: $(STAMP)
	$(PYTEST) -n $(PROCESSES) -m "not slow" $(PYTEST_ARGS)

test-all: $(STAMP)
	$(PYTEST) $(PYTEST_ARGS)

# Each optional package lies in a folder of its own that goes before .venv: without its declared dependencies, which
# would put another torch, numpy or torchvision in place of those that everything else is tested with.
PACKAGES := $(notdir $(basename $(wildcard tests/packages/*.txt)))
test-packages: $(PACKAGES:%=build/packages/%/.installed)
	@failed=0; for name in $(PACKAGES); do echo "== $$name"; PYTHONPATH=$(CURDIR)/build/packages/$$name \
		$(PYTEST) -m "not slow" tests/packages/test_$$(echo $$name | tr - _).py $(PYTEST_ARGS) \
		|| failed=1; done; exit $$failed

build/packages/%/.installed: tests/packages/%.txt $(STAMP)
	rm -rf $(@D)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(@D) -r $<
	@touch $@

# Ray is large and its tests start clusters: neither is part of `make test`.
test-ray: $(VENV)/.ray
	$(PYTEST) tests/labeling/test_ray.py $(PYTEST_ARGS)

$(VENV)/.ray: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[ray]"
	@touch $@

# Gradio is large and its tests drive a browser; those skip where there is no Chromium (CHROMIUM=/path/to/one).
test-web: $(VENV)/.web
	$(PYTEST) tests/web tests/cli/test_serve.py $(PYTEST_ARGS)

$(VENV)/.web: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[web]" playwright
	@touch $@

# The site is built with every link and anchor checked; then the notebook and the longer pages are run.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest -m slow tests/docs $(PYTEST_ARGS)

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[docs]"
	@touch $@

# Not part of continuous integration: it takes about twice as long as those tests. pyproject.toml says what counts.
coverage: $(VENV)/.quality $(VENV)/.ray $(VENV)/.web
	rm -rf build/coverage
	mkdir -p build/coverage
	-$(MAKE) -k test-all test-packages PYTEST="$(BIN)/coverage run -m pytest" # the report comes if a test fails, too
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Hours; a part of it with MUTANTS='openavs.stages.detectors.*', and what survived with `.venv/bin/mutmut browse`.
MUTANTS ?=
mutants: $(VENV)/.quality
	$(BIN)/mutmut run $(MUTANTS)
	$(BIN)/mutmut results

$(VENV)/.quality: .ci/quality.txt $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -r $<
	@touch $@

# The texts whose language `make lint` checks.
PROSE := README.md GLOSSARY.md
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
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

# The wheel of dist/ is built from the sdist beside it; build/direct holds one built from the checkout, to compare.
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

# The software bill of materials (CycloneDX): what the wheel brings along in that environment, with its licenses.
sbom: $(CLEAN)/.installed $(TOOLS)/.installed
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type library \
		--output-reproducible --of JSON -o build/sbom.json $(CLEAN)/bin/python

# Asks the advisory database about every pinned version; needs the network, so .ci/run does not run it.
audit: $(TOOLS)/.installed
	@$(TOOLS)/bin/python .ci/audit.py $(TOOLS)/bin/pip-audit

clean:
	rm -rf build dist mutants .pytest_cache .mypy_cache .ruff_cache
