# Two commands matter: `make paper` and `make test`. Each makes what it needs; a second run is
# instant. STUDY=cpu (or full, tiny) lays workflow/studies/cpu.yaml over config.yaml.

PYTHON ?= python3
STUDY ?= default

# OFFLINE=1: nothing is fetched; only what is already on this machine is used.
ifdef OFFLINE
export HF_HUB_OFFLINE := 1
export PIP_NO_INDEX := 1
endif

BIN := .venv/bin
# The code that runs is the code beside this file, whatever else is installed.
KVBUDGET := PYTHONPATH=src $(BIN)/python -m kvbudget
# STUDY names a file in workflow/studies/, or is the path of one of your own.
OVERLAY := $(if $(filter-out default,$(STUDY)),--configfile $(if $(filter %.yaml,$(STUDY)),$(STUDY),workflow/studies/$(STUDY).yaml))
# Measurements at once: one on each GPU. Without a GPU one, which has all cores: jobs at the same time
# disturb each other's times. Where times do not matter, JOBS=2 is quicker on two cores.
JOBS ?= $(or $(filter-out 0,$(shell nvidia-smi --list-gpus 2>/dev/null | wc -l)),1)
# A study whose records are in results/published/ is typeset from them. PUBLISHED=extend measures what
# they lack, PUBLISHED=ignore measures all.
CONFIG = $(if $(PUBLISHED),published=$(PUBLISHED)) $(EXTRA)
SNAKEMAKE = $(BIN)/snakemake $(OVERLAY) $(if $(strip $(CONFIG)),--config $(CONFIG)) --cores all --resources gpu=$(JOBS)
OF_STUDY = $(STUDY) $(if $(PUBLISHED),--published $(PUBLISHED))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TEX := texlive-latex-extra texlive-science texlive-fonts-recommended latexmk

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help plan paper smoke draft status rerun report site verify attest bundle publish unbundle audit peers test test-slurm gpu \
    soak lint bench lock packages tex slurm chromium clean-paper clean-results clean-downloads clean-env

help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

plan: .venv/.installed ## Check STUDY and print what it will cost; nothing is downloaded or computed
	@$(KVBUDGET) plan $(OF_STUDY)

paper: ## Build the paper of STUDY, from its published records or by computing it: paper/STUDY/main.pdf
	@$(MAKE) --no-print-directory --jobs 2 .venv/.installed tex
	$(SNAKEMAKE)

smoke: ## Compute and typeset a small study: does it all work here? Two minutes on two cores
	@$(MAKE) --no-print-directory paper STUDY=smoke

draft: EXTRA := draft=True
draft: .venv/.installed tex ## Typeset what is finished of a study: paper/STUDY-draft/main.pdf
	$(SNAKEMAKE)

status: .venv/.installed ## How far a study is, also while it runs: make status [STUDY=... WATCH=1]
	@$(KVBUDGET) status $(OF_STUDY) $(if $(WATCH),--watch)

rerun: .venv/.installed ## Run one cell again: make rerun CELL=results/cells/.../B20p-....json [STUDY=...]
	@test -n "$(CELL)" || { echo "error: name the cell: make rerun CELL=path [STUDY=...]" >&2; exit 2; }
	@# The contexts of a finished cell are its old results; those of a failed one are kept.
	@test ! -e "$(CELL)" || rm -f "$(CELL)" "$(CELL:.json=.contexts.jsonl)"
	$(SNAKEMAKE) -- $(CELL)

report: .venv/.installed ## Write results/{study}/report.html of a finished study (with its page, if made)
	$(SNAKEMAKE) --report results/$(STUDY)/report.html \
	    $(if $(wildcard results/$(STUDY)/site.html),-- all site)

site: .venv/.installed ## Write results/{study}/site.html, a page to look around in: make site [STUDY=...]
	$(SNAKEMAKE) -- site

verify: .venv/.installed ## Name what of a finished study is stale, and why: make verify [STUDY=...]
	@$(KVBUDGET) verify $(OF_STUDY)

attest: .venv/.installed ## Compare published records of earlier code with today's: make attest [STUDY=... CONTEXTS=n]
	@$(KVBUDGET) attest $(STUDY) $(if $(CONTEXTS),--contexts $(CONTEXTS))

bundle: .venv/.installed ## Archive the finished cells of a study: make bundle [STUDY=... BUNDLE=file]
	@$(KVBUDGET) bundle $(OF_STUDY) $(if $(BUNDLE),--out "$(BUNDLE)")

publish: .venv/.installed ## The same into results/published/, from where `make paper` takes them
	@$(KVBUDGET) bundle $(OF_STUDY) --out results/published/$(STUDY).tar.xz

unbundle: .venv/.installed ## Put someone's finished cells into results/: make unbundle BUNDLE=file
	@test -n "$(BUNDLE)" || { echo "error: name the file: make unbundle BUNDLE=file" >&2; exit 2; }
	@$(KVBUDGET) unbundle "$(BUNDLE)"

# No part of `make test`: it asks the package registry for advisories, which change by the day.
# Strict, as a package that cannot be looked up must not count as a safe one.
audit: .venv/.installed ## Look the installed packages up in the database of known vulnerabilities
	$(PIP) --editable '.[audit]'
	$(BIN)/pip freeze --exclude-editable | sed 's/+.*//' | $(BIN)/pip-audit --strict --no-deps \
	    --disable-pip --progress-spinner off --requirement /dev/stdin

# kvpress wants another transformers. Nothing else needs it, and its tests are skipped without it.
peers: .venv-peers/.installed ## Install kvpress in an environment of its own: cells of method kvpress, and parity

# Each test keeps to one thread, and the tests of one file to one process; the longest files first.
# Three processes on two cores, as some tests wait for Slurm, a page or a lock.
test: ## Lint, then run all tests; those with a Slurm on this machine only as root
	@$(MAKE) --no-print-directory --jobs 2 .venv/.installed-test packages
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-slurm: ## Of these, run cells through a Slurm that is started on this machine, as root
	@$(MAKE) --no-print-directory --jobs 2 .venv/.installed-test slurm
	$(BIN)/pytest -m slurm

# Tests of what takes a GPU where there is one.
ON_GPU := bench calibrate cell decoding saved streaming warm
gpu: .venv/.installed-test ## The cache on this machine's GPU: tests, then a bench; ten minutes
	$(BIN)/pytest tests/gpu $(ON_GPU:%=tests/unit/test_%.py)
	$(BIN)/python tests/gpu/bench.py --out results/bench/gpu.json

soak: .venv/.installed-test ## Kill a small study 30 times; its results must be those of a quiet run
	$(BIN)/pytest -m soak

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint
	$(BIN)/lint-imports

bench: MODEL ?= smollm2-135m
bench: .venv/.installed ## Time and size of the cache as ratios: make bench [MODEL=key STUDY=... BENCH="--lengths 8000"]
	$(SNAKEMAKE) --quiet all -- results/models/$(MODEL).verified.json
	$(KVBUDGET) bench --model-dir results/models/$(MODEL) \
	    --verified results/models/$(MODEL).verified.json --out results/bench/$(MODEL).json $(BENCH)

.PHONY: docs
docs: .venv/.installed ## Build the guides of docs/ as a site: build/docs/index.html
	$(PIP) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/docs/index.html

lock: .venv/.installed ## Record the file hashes of a model: make lock MODEL=key [STUDY=...]
	@test -n "$(MODEL)" || { echo "error: name the model: make lock MODEL=key [STUDY=...]" >&2; exit 2; }
	$(SNAKEMAKE) -- results/models/$(MODEL)/source.json
	$(KVBUDGET) lock --model $(MODEL) --dir results/models/$(MODEL) --lock workflow/models.lock.yaml

clean-paper: ## Remove what was rendered for STUDY
	rm -rf paper/$(STUDY) paper/$(STUDY)-draft paper/main.pdf

clean-results: ## Remove all cells and calibrations, and what was made of them for STUDY
	rm -rf results/$(STUDY) results/cells results/calibrations results/prefills results/code

clean-downloads: ## Remove models and texts
	rm -rf results/models results/text

clean-env: ## Remove the virtual environments
	rm -rf .venv .venv-peers

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer \
	is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(PIP) --editable '.[fast]'
	@touch $@

.venv/.installed-test: .venv/.installed
	$(PIP) --editable '.[test]'
	@touch $@

.venv-peers/.installed: workflow/envs/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement $< \
	    || { rm -rf .venv-peers; exit 1; }
	@touch $@

# $(call install,Name,command,packages,what is missing without them): through apt where that needs
# no questions; otherwise says what to install and goes on.
define install
@if command -v $(2) > /dev/null; then exit 0; fi; \
if ! command -v apt-get > /dev/null; then as=; \
elif [ "$$(id -u)" = 0 ]; then as=env; \
elif sudo -n true 2> /dev/null; then as='sudo -n env'; \
else as=; fi; \
if [ -n "$$as" ] && echo "Installing $(1): $(3)" && $$as apt-get update -qq && \
    $$as DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(3) \
    > /dev/null; then exit 0; fi; \
echo "$(1) is missing and cannot be installed from here. For $(4) install: $(3)"
endef

# One after the other, as apt does not share.
packages:
	@$(MAKE) --no-print-directory tex
	@$(MAKE) --no-print-directory slurm
	@$(MAKE) --no-print-directory chromium

# Without it, the workflow builds everything up to the PDF.
tex:
	$(call install,TeX,latexmk,$(TEX),the PDF)

# Nothing of it is started.
slurm:
	$(call install,Slurm,slurmctld,slurm-wlm munge,its tests)

# 113 MB to download, without the libraries that it shares.
chromium:
	$(call install,Chromium,chromium,chromium,the tests of the page of results)
