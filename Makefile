# `make click-test` trains, `make test` tests; every target runs set-up first.

SETUP := python3 scripts/setup.py $(if $(PYTHON),--python $(PYTHON)) \
         $(if $(DEVICE),--device $(DEVICE))
PY := .venv/bin/python

# Unbound OpenMP threads can share one core and spin: bind them for training, use one for tests,
# unless the user decides. (A process started by a bound one inherits the core of its first thread.)
# Not on a Mac, whose OpenMP cannot bind. No more than make 3.81 knows: it is the one of macOS.
ifndef OMP_NUM_THREADS
ONE_THREAD := OMP_NUM_THREADS=1
ifeq ($(shell uname -s),Linux)
OPENMP := OMP_NUM_THREADS=2 OMP_PROC_BIND=true OMP_PLACES=cores
endif
endif
# An update allocates and frees a gigabyte per step: keeping it, in huge pages, avoids page faults.
# (Other systems have no glibc, and ignore the variable.)
ifndef GLIBC_TUNABLES
MALLOC := glibc.malloc.trim_threshold=1099511627776:glibc.malloc.mmap_threshold=1073741824
OPENMP += GLIBC_TUNABLES=glibc.malloc.hugetlb=1:$(MALLOC)
endif

# The options of `grpo train`; without a task or a configuration it trains on click-test.
OPTIONS := $(if $(TASK),--task $(TASK)) $(if $(CONFIG),--config $(CONFIG)) \
           $(if $(MODEL),--model $(MODEL)) $(if $(BACKEND),--backend $(BACKEND)) $(ARGS)

# vLLM has an environment of its own, on top of .venv. Its environment variables are set in
# grpo/generators/vllm/options.py.
VLLM := .venv-vllm/bin
GRPO := $(if $(filter vllm%,$(BACKEND)),$(VLLM),.venv/bin)/grpo

# Tests wait for browsers and processes half of the time: one pytest process per core.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup click-test serve test test-reference test-zoo test-vllm check check-docker \
        clean benchmark-update benchmark-step benchmark-rollouts benchmark-generate \
        benchmark-pages soak

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install .venv, torch, packages, Chromium, the model (PYTHON, DEVICE)
	@$(SETUP)

click-test: setup ## train SmolLM2-135M on a browser task (TASK, CONFIG, MODEL, BACKEND, ARGS)
	@$(if $(filter vllm%,$(BACKEND)),$(SETUP) --vllm)
	@$(OPENMP) $(GRPO) train $(OPTIONS)

serve: ## start a vLLM server for BACKEND=vllm-server (the variables of click-test)
	@$(SETUP) --vllm
	@$(ONE_THREAD) $(VLLM)/grpo serve-vllm $(OPTIONS)

test: setup ## run all tests but those of the next three targets (ARGS for pytest)
	@$(ONE_THREAD) $(PY) -m pytest -m "not reference and not zoo" $(PARALLEL) --durations=10 $(ARGS)

test-reference: ## compare with TRL's and PEFT's code, in .venv-reference (ARGS for pytest)
	@$(SETUP) --reference
	@$(ONE_THREAD) .venv-reference/bin/python -m pytest -m "reference and not zoo" --durations=10 $(ARGS)

test-zoo: setup ## compare every architecture with its own forward, and with PEFT (ARGS for pytest)
	@$(ONE_THREAD) $(PY) -m pytest -m "zoo and not reference" $(PARALLEL) --durations=10 $(ARGS)
	@$(SETUP) --reference
	@$(ONE_THREAD) .venv-reference/bin/python -m pytest -m "zoo and reference" $(PARALLEL) $(ARGS)

test-vllm: ## test the generators with a real vLLM, in .venv-vllm (ARGS for pytest)
	@$(SETUP) --vllm
	@$(ONE_THREAD) $(VLLM)/python -m pytest -m vllm --durations=10 $(ARGS)

benchmark-update: setup ## time and memory of an update, ours and TRL's (ARGS="--sweep")
	@$(SETUP) --reference
	@$(OPENMP) $(PY) -m benchmarks.update $(ARGS)

benchmark-step: setup ## seconds of a step from end to end, ours and TRL's (ARGS="--no-trl")
	@$(SETUP) --reference
	@$(OPENMP) $(PY) -m benchmarks.step $(ARGS)

benchmark-rollouts: setup ## episodes per second, ours and BrowserGym's (ARGS="--help")
	@$(PY) -m benchmarks.rollouts $(ARGS)

benchmark-generate: ## tokens and syncs per second of each generator (ARGS="--help")
	@$(SETUP) --vllm
	@$(ONE_THREAD) $(VLLM)/python -m benchmarks.generate $(ARGS)

benchmark-pages: setup ## tokens of each task's page, success by element ids (ARGS="--write")
	@$(PY) -m benchmarks.pages $(ARGS)

soak: setup ## 3000 episodes: failures, memory, processes left (ARGS="--faults", --help)
	@$(PY) -m benchmarks.soak $(ARGS)

check: setup ## ruff, formatting, mypy, the import rules and the words
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m pytest tests/test_architecture.py tests/test_words.py

# What the containers run: a tiny training, and the server, which check_env then uses.
TINY := --steps 1 --group-size 2 --groups-per-step 2 --eval-episodes 2 --env-sessions 4
CHECK_ENV := import asyncio; from envs.base import Task; from envs.checker import check_env; \
             from envs.browser.env import BrowserEnv as Env; \
             asyncio.run(check_env(lambda: Env('http://127.0.0.1:7860'), Task('click-test', 0)))

check-docker: setup ## run both Dockerfiles' steps in a clean Debian (root, debootstrap, 5 GB)
	@$(PY) scripts/check_dockerfile.py Dockerfile --args "$(TINY)" --then "find runs -type f" $(ARGS)
	@$(PY) scripts/check_dockerfile.py Dockerfile.server --then "python -c \"$(CHECK_ENV)\""

clean: ## remove what setup installed
	rm -rf .venv .venv-reference .venv-vllm .cache *.egg-info
