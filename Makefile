# Each purpose and interpreter has a virtual environment with the package installed as users
# install it, not editable: what is tested and shown is the artefact.

PYTHON ?= python3
ARGS ?=
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

.PHONY: help demo test coverage ledger bench memory report lint clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18
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

MEASURED = FASTSMTP_IMPL=$(if $(filter no,$(FASTSMTP_BUILD_EXTENSION)),python,c) \
	$(call bin,test)/python -m pytest --cov --cov-report=

# One run is enough: with the extension there, each codec test runs on both twins.  What failed is
# run again, for CPython 3.11 may refuse to trace two threads that begin at the same moment; that
# all pass without being traced is what `make test` is for.
coverage: .venv/test-$(TAG)/$(STAMP)  ## a run measured: pure layers 100 %, package 95 %
	$(MEASURED) $(ARGS) || $(MEASURED) --cov-append --last-failed --last-failed-no-failures=none
	$(call bin,test)/coverage report --fail-under=95
	$(call bin,test)/coverage report --fail-under=100 --include=$(PURE_FILES)

ledger: .venv/test-$(TAG)/$(STAMP)  ## 300 runs of 10,000 messages against a faulty server: 45 minutes
	FASTSMTP_LEDGER=300:10000 $(call bin,test)/python -m pytest tests/test_ledger.py::test_ledger $(ARGS)

bench: .venv/bench-$(TAG)/$(STAMP)  ## the benchmarks; ARGS=--benchmark-disable for one quick pass
	$(call bin,bench)/python -m pytest benches $(ARGS)

memory: .venv/bench-$(TAG)/$(STAMP)  ## flat memory: 1,000,000 messages against 10,000
	$(call bin,bench)/python benches/memory.py $(ARGS)

report: .venv/bench-$(TAG)/$(STAMP)  ## the tables of ratios that the README shows
	$(call bin,bench)/python benches/report.py

lint: .venv/lint-$(TAG)/$(STAMP)  ## ruff, mypy, pyright
	$(call bin,lint)/ruff check
	$(call bin,lint)/ruff format --check
	$(call bin,lint)/mypy
	$(call bin,lint)/pyright --pythonpath $(call bin,lint)/python

clean:  ## remove all that the above made
	rm -rf .venv build dist src/*.egg-info src/fastsmtp/_codec.c .benchmarks .coverage* \
		.hypothesis .mypy_cache .pytest_cache .ruff_cache
