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
SERVE := $(if $(CONFIG),--config $(CONFIG)) $(if $(MODEL),--model $(MODEL)) $(ARGS)

# vLLM lives in an environment of its own, over .venv's packages. Its own variables are set in
# grpo/generators/vllm/options.py.
VLLM := .venv-vllm/bin/python
PY_CLICK_TEST := $(if $(filter vllm%,$(BACKEND)),$(VLLM),$(PY))

# Tests wait for browsers and processes half of their time: a process a core, each with its own.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup click-test serve test test-reference test-vllm check check-docker clean \
        benchmark-update benchmark-rollouts benchmark-generate benchmark-pages soak

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## .venv, torch, packages, Chromium, model (PYTHON=...); done by the others too
	@$(SETUP)

click-test: setup ## train SmolLM2-135M on a browser task (TASK, CONFIG, MODEL, BACKEND, ARGS)
	@$(if $(filter vllm%,$(BACKEND)),$(SETUP) --vllm)
	@$(OPENMP) $(PY_CLICK_TEST) examples/click_test.py $(CLICK_TEST)

serve: ## a vLLM server for BACKEND=vllm-server (MODEL, CONFIG, ARGS as of click-test)
	@$(SETUP) --vllm
	@$(ONE_THREAD) $(VLLM) -m grpo.generators.vllm.serve $(SERVE)

test: setup ## every test but those with TRL and PEFT, and with vLLM (ARGS for pytest)
	@$(ONE_THREAD) $(PY) -m pytest -m "not reference" $(SIDE_BY_SIDE) --durations=10 $(ARGS)

test-reference: ## compare with TRL's and PEFT's own code, in .venv-reference (ARGS for pytest)
	@$(SETUP) --reference
	@$(ONE_THREAD) .venv-reference/bin/python -m pytest -m reference --durations=10 $(ARGS)

test-vllm: ## the generators over a real vLLM, in .venv-vllm (ARGS for pytest)
	@$(SETUP) --vllm
	@$(ONE_THREAD) $(VLLM) -m pytest -m vllm --durations=10 $(ARGS)

benchmark-update: setup ## time and memory of an update beside TRL's (ARGS="--sweep", --help)
	@$(SETUP) --reference
	@$(OPENMP) $(PY) benchmarks/update.py $(ARGS)

benchmark-rollouts: setup ## episodes a second beside BrowserGym by itself (ARGS="--json", --help)
	@$(PY) benchmarks/rollouts.py $(ARGS)

benchmark-generate: ## tokens and syncs a second: local, vLLM, its server (ARGS="--json", --help)
	@$(SETUP) --vllm
	@$(ONE_THREAD) $(VLLM) benchmarks/generate.py $(ARGS)

benchmark-pages: setup ## tokens of every task's page, and what element ids reach (ARGS="--write")
	@$(PY) benchmarks/pages.py $(ARGS)

soak: setup ## 3000 episodes: lost, wrong, memory, processes left (ARGS="--faults", --help)
	@$(PY) benchmarks/soak.py $(ARGS)

check: setup ## ruff, mypy and the import rule
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m pytest tests/test_architecture.py

# The container's own program: a tiny run, or the server, on which an environment is then checked.
TINY := --steps 1 --group-size 2 --groups-per-step 2 --eval-episodes 2 --env-sessions 4
CHECK_ENV := import asyncio; from envs.base import Task; from envs.checker import check_env; \
             from envs.browser.env import BrowserEnv as Env; \
             asyncio.run(check_env(lambda: Env('http://127.0.0.1:7860'), Task('click-test', 0)))

check-docker: setup ## both Dockerfiles' steps in a clean Debian (root, debootstrap; 5 GB for a while)
	@$(PY) scripts/check_dockerfile.py Dockerfile --args "$(TINY)" --then "find runs -type f" $(ARGS)
	@$(PY) scripts/check_dockerfile.py Dockerfile.server --then "python -c \"$(CHECK_ENV)\""

clean: ## remove what setup made
	rm -rf .venv .venv-reference .venv-vllm .cache *.egg-info
