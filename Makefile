# Two commands matter: `make click-test` trains, `make test` tests. Each sets itself up first.

SETUP := python3 scripts/setup.py $(if $(PYTHON),--python $(PYTHON))
PY := .venv/bin/python

# Unbound OpenMP threads can share one core and spin: bind them to train, use one to test. The
# user's own choice stands. (Whatever a bound process starts inherits its first thread's core.)
ifndef OMP_NUM_THREADS
OPENMP := OMP_NUM_THREADS=2 OMP_PROC_BIND=true OMP_PLACES=cores
ONE_THREAD := OMP_NUM_THREADS=1
endif
# An update takes and frees a gigabyte a step: huge pages that are kept spare it the page faults.
ifndef GLIBC_TUNABLES
MALLOC := glibc.malloc.trim_threshold=1099511627776:glibc.malloc.mmap_threshold=1073741824
OPENMP += GLIBC_TUNABLES=glibc.malloc.hugetlb=1:$(MALLOC)
endif

CLICK_TEST := $(if $(TASK),--task $(TASK)) $(if $(CONFIG),--config $(CONFIG)) \
              $(if $(MODEL),--model $(MODEL)) $(if $(BACKEND),--backend $(BACKEND)) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup click-test test test-reference benchmark-update benchmark-rollouts soak check clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## .venv, torch, packages, Chromium, model (PYTHON=...); done by the others too
	@$(SETUP)

click-test: setup ## train SmolLM2-135M on a browser task (TASK, CONFIG, MODEL, BACKEND, ARGS)
	@$(OPENMP) $(PY) examples/click_test.py $(CLICK_TEST)

test: setup ## every test but the comparisons with TRL and PEFT (ARGS for pytest)
	@$(ONE_THREAD) $(PY) -m pytest -m "not reference" --durations=10 $(ARGS)

test-reference: ## compare with TRL's and PEFT's own code, in .venv-reference (ARGS for pytest)
	@$(SETUP) --reference
	@$(ONE_THREAD) .venv-reference/bin/python -m pytest -m reference --durations=10 $(ARGS)

benchmark-update: setup ## time and memory of an update beside TRL's (ARGS="--sweep", --help)
	@$(SETUP) --reference
	@$(OPENMP) $(PY) benchmarks/update.py $(ARGS)

benchmark-rollouts: setup ## episodes a second beside BrowserGym by itself (ARGS="--json", --help)
	@$(PY) benchmarks/rollouts.py $(ARGS)

soak: setup ## 3000 episodes: lost, wrong, memory, processes left (ARGS="--faults", --help)
	@$(PY) benchmarks/soak.py $(ARGS)

check: setup ## ruff, mypy and the import rule
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m pytest tests/test_architecture.py

clean: ## remove what setup made
	rm -rf .venv .venv-reference .cache *.egg-info
