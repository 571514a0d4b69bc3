# Each purpose and interpreter has a virtual environment with the package installed as users
# install it, not editable: what is tested and shown is the artefact.

PYTHON ?= python3
ARGS ?=
MINUTES ?= 10
# The same for the half of `make test` that is on the Python codec.
ARGS_PYTHON ?= $(ARGS)

# "cpython3.13 yes": the interpreter's tag, and whether a C extension can be compiled for it.
PROBE := $(shell $(PYTHON) -c 'import os, shutil, sys, sysconfig; \
name = sys.implementation.name; \
header = os.path.join(sysconfig.get_path("include"), "Python.h"); \
able = name == "cpython" and shutil.which("$(firstword $(CC))") and os.path.exists(header); \
print(name + "%d.%d" % sys.version_info[:2] + sys.abiflags, "yes" if able else "no")')
TAG := $(firstword $(PROBE))
ifeq ($(TAG),)
$(error PYTHON=$(PYTHON) does not run)
endif

# Where the extension can be compiled it must be: a broken build fails instead of testing less.
ifeq ($(FASTSMTP_BUILD_EXTENSION),)
FASTSMTP_BUILD_EXTENSION := $(lastword $(PROBE))
endif
export FASTSMTP_BUILD_EXTENSION

SOURCES := pyproject.toml setup.py \
	$(shell find src -name '*.py' -o -name '*.pyi' -o -name '*.pyx' -o -name py.typed)
STAMP := installed-with-extension-$(FASTSMTP_BUILD_EXTENSION)
NO_EXTENSION = @echo "No extension here (no C compiler, no Python.h, or told so): the Python codec only."

define bin
.venv/$(1)-$(TAG)/bin
endef

.PHONY: help demo test coverage test-servers test-newest fuzz sanitize leaks ledger soak downstream \
	bench bench-compare bench-keep memory report docs lint release-check clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22
	@echo "PYTHON=python3.10 chooses another interpreter; ARGS=... goes to pytest."

# pip would pack whatever an earlier build left in build/.
.venv/%-$(TAG)/$(STAMP): $(SOURCES)
	@echo "Installing fastsmtp[$*] into $(@D), extension: $(FASTSMTP_BUILD_EXTENSION)"
	@$(PYTHON) -m venv $(@D)
	@rm -rf build $(@D)/installed-*
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check '.[$*]'
	@touch $@

demo: .venv/demo-$(TAG)/$(STAMP)  ## send real messages by smtplib and fastsmtp, compare
ifeq ($(FASTSMTP_BUILD_EXTENSION),no)
	$(NO_EXTENSION)
endif
	$(call bin,demo)/fastsmtp demo

test: .venv/test-$(TAG)/$(STAMP)  ## the test suite, on the compiled codec and on the Python one
ifeq ($(FASTSMTP_BUILD_EXTENSION),no)
	$(NO_EXTENSION)
else
	FASTSMTP_IMPL=c $(call bin,test)/python -m pytest $(ARGS)
endif
	FASTSMTP_IMPL=python $(call bin,test)/python -m pytest $(ARGS_PYTHON)

PURE := protocol operations auth envelope reply message _codec_py codec errors options pace \
	transactions conversation jobs delivery outgoing fields serializer
comma := ,
empty :=
space := $(empty) $(empty)
PURE_FILES := $(subst $(space),$(comma),$(PURE:%=src/fastsmtp/%.py))

# MEASURED_IN is the bin folder of another environment that has fastsmtp[test].
MEASURED_BIN = $(or $(MEASURED_IN),$(call bin,test))
MEASURED = FASTSMTP_IMPL=$(if $(filter no,$(FASTSMTP_BUILD_EXTENSION)),python,c) \
	$(MEASURED_BIN)/python -m pytest --cov --cov-report=

# One run is enough: with the extension there, each codec test runs on both twins.  What failed is
# run again, for CPython 3.11 may refuse to trace two threads that begin at the same moment; that
# all pass without being traced is what `make test` is for.
coverage: $(if $(MEASURED_IN),,.venv/test-$(TAG)/$(STAMP))  ## a run measured: pure layers 100 %, package 95 %
	$(MEASURED) $(ARGS) || $(MEASURED) --cov-append --last-failed --last-failed-no-failures=none
	$(MEASURED_BIN)/coverage report --fail-under=95
	$(MEASURED_BIN)/coverage report --fail-under=100 --include=$(PURE_FILES)

test-servers: .venv/test-$(TAG)/$(STAMP)  ## real servers, on both codecs (Linux, root, apt); writes docs/servers.md
	rm -f .servers/results/c.json .servers/results/python.json
ifeq ($(FASTSMTP_BUILD_EXTENSION),no)
	$(NO_EXTENSION)
else
	FASTSMTP_SERVERS=all FASTSMTP_IMPL=c $(call bin,test)/python -m pytest tests/servers -q -n 2 $(ARGS)
endif
	FASTSMTP_SERVERS=all FASTSMTP_IMPL=python $(call bin,test)/python -m pytest tests/servers -q -n 2 $(ARGS_PYTHON)
	$(call bin,test)/python tests/servers/matrix.py

test-newest:  ## the suite and the servers in Debian unstable (root, debootstrap): half an hour
	tests/servers/newest.sh $(ARGS)

fuzz: .venv/fuzz-$(TAG)/$(STAMP)  ## coverage-guided fuzzing; ARGS="--seconds 600"
	$(call bin,fuzz)/python tests/fuzz/run.py $(ARGS)

sanitize: .venv/test-$(TAG)/$(STAMP)  ## the codec under AddressSanitizer and UBSan (gcc)
	tests/sanitize.sh $(call bin,test)/python $(ARGS)

leaks: .venv/test-$(TAG)/$(STAMP)  ## what grows with the number of calls: nothing
	$(call bin,test)/python tests/leaks.py $(ARGS)

soak: .venv/test-$(TAG)/$(STAMP)  ## the Mailer against a faulty server; MINUTES=10
	$(call bin,test)/python tests/soak.py $(MINUTES)

downstream: .venv/test-$(TAG)/$(STAMP)  ## the tests of CPython, Django and aiosmtpd on fastsmtp
	tests/downstream.sh $(call bin,test)/python

ledger: .venv/test-$(TAG)/$(STAMP)  ## 300 runs of 10,000 messages against a faulty server: 45 minutes
	FASTSMTP_LEDGER=300:10000 $(call bin,test)/python -m pytest tests/test_ledger.py::test_ledger $(ARGS)

bench: .venv/bench-$(TAG)/$(STAMP)  ## the benchmarks; ARGS=--benchmark-disable for one quick pass
	@mkdir -p .benchmarks
	$(call bin,bench)/python -m pytest benches --benchmark-json=.benchmarks/latest.json $(ARGS)

bench-compare: .venv/bench-$(TAG)/$(STAMP)  ## what changed since the kept benchmarks, as ratios to smtplib
	@$(call bin,bench)/python benches/compare.py

bench-keep: .venv/bench-$(TAG)/$(STAMP)  ## keep the figures of the last `make bench`
	@$(call bin,bench)/python benches/compare.py keep

memory: .venv/bench-$(TAG)/$(STAMP)  ## flat memory: 1,000,000 messages against 10,000
	$(call bin,bench)/python benches/memory.py $(ARGS)

report: .venv/bench-$(TAG)/$(STAMP)  ## the tables of ratios that the README shows
	$(call bin,bench)/python benches/report.py

docs: .venv/docs-$(TAG)/$(STAMP)  ## the documentation, its examples tested, into build/docs
	$(call bin,docs)/python -m pytest -q tests/test_docs.py
	$(call bin,docs)/python -m sphinx -W --keep-going -q -b html docs build/docs

release-check: .venv/release-$(TAG)/$(STAMP)  ## all that can be checked of a release without making it
	rm -rf build dist
	$(call bin,release)/python tools/release.py version
	PATH="$(call bin,release):$$PATH" $(call bin,release)/python tools/release.py identifiers
	$(call bin,release)/python -m build --quiet --sdist
	FASTSMTP_BUILD_EXTENSION=no $(call bin,release)/python -m build --quiet --wheel
	$(call bin,release)/python -m pip wheel --quiet --no-deps --wheel-dir dist/raw dist/*.tar.gz
	PATH="$(call bin,release):$$PATH" $(call bin,release)/auditwheel repair --wheel-dir dist dist/raw/*.whl
	rm -r dist/raw
	$(call bin,release)/python tools/release.py here dist
	$(call bin,release)/twine check --strict dist/*
	$(call bin,release)/check-wheel-contents dist/*.whl
	$(call bin,release)/zizmor --offline --quiet .github

lint: .venv/lint-$(TAG)/$(STAMP)  ## ruff, mypy, pyright, cython-lint, codespell
	$(call bin,lint)/ruff check
	$(call bin,lint)/ruff format --check
	$(call bin,lint)/mypy
	$(call bin,lint)/pyright --pythonpath $(call bin,lint)/python
	PATH="$(call bin,lint):$$PATH" cython-lint src/fastsmtp/_codec.pyx
	$(call bin,lint)/codespell

clean:  ## remove all that the above made
	rm -rf .venv build dist src/*.egg-info src/fastsmtp/_codec.c .benchmarks .coverage* \
		.hypothesis .mypy_cache .pytest_cache .ruff_cache
