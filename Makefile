# One rule: every target works in a fresh clone. Set-up happens by itself, into .venv, when it is missing or when
# setup.cfg or constraints.txt changed; only Python 3.10 or 3.11 and make are needed beforehand.
#   make PYTHON=/path/to/python3.11     choose the interpreter
#   make test WORKERS=8                 parallel test processes
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?=
WORKERS ?= 2
DEMO ?= runs/demo
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Two test processes on two cores: one thread each, or they fight. TensorFlow's banner is not news.
TEST_ENV := OMP_NUM_THREADS=1 TF_CPP_MIN_LOG_LEVEL=3

.PHONY: help setup demo results test test-all lint bench clean

help: ## what can be done here
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(READY) ## make .venv (every other target does it when needed)

# A Python that starts, is 3.10 or 3.11, and can make environments; the last names are where pyenv keeps its own.
$(READY): setup.cfg constraints.txt
	@found=; for python in "$(PYTHON)" python3.11 python3.10 python3 /usr/bin/python3.11 /usr/bin/python3.10 \
	        $$HOME/.pyenv/versions/3.11*/bin/python3.11 $$HOME/.pyenv/versions/3.10*/bin/python3.10; do \
	    if "$$python" -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' 2>/dev/null; \
	    then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "vw2_robot needs Python 3.11 or 3.10 with venv (Debian, Ubuntu: apt install python3.11 python3.11-venv); then run make again." >&2; \
	    exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$("$$found" --version): several minutes, once."; \
	[ -x $(BIN)/python ] && $(BIN)/python -c 'import pip' 2>/dev/null || "$$found" -m venv --clear $(VENV); \
	$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check --no-compile --prefer-binary \
	    -c constraints.txt -e '.[all,dev]'
	@touch $@

# Every stage skips what is complete and resumes what is not, so a demo that was stopped goes on where it stood.
# Passive waiting: two threads of torch on a busy machine otherwise spend their time spinning.
DEMO_ENV := OMP_WAIT_POLICY=PASSIVE TF_CPP_MIN_LOG_LEVEL=3

demo: $(READY) ## the whole chain, small: record, pre-train, fine-tune, roll out, report
	@export $(DEMO_ENV); started=$$SECONDS; say() { printf '\n== %s (%d s so far)\n' "$$1" $$((SECONDS - started)); }; \
	say "0/6 the policy that comes with the package, in closed loop"; \
	$(BIN)/vw2-rollout policy=builtin:calvin-tiny num_sequences=8 videos=8 workers=2 run_dir=$(DEMO)/calvin-tiny; \
	say "1/6 other robots' video as an RLDS data set"; \
	$(BIN)/vw2-record env=arms format=rlds episodes=100 workers=2 out=$(DEMO)/arms; \
	say "2/6 pre-training without labels: video prior, dLDM, latent tokens, policy"; \
	$(BIN)/pretrain-on-openx data=rlds data.path=$(DEMO)/arms model=demo run_dir=$(DEMO)/pretrain; \
	say "3/6 CALVIN demonstrations with labels"; \
	$(BIN)/vw2-record tasks=basic episodes=120 workers=2 out=$(DEMO)/calvin; \
	say "4/6 action head"; \
	$(BIN)/vw2-finetune policy=$(DEMO)/pretrain data.path=$(DEMO)/calvin run_dir=$(DEMO)/finetune loop.steps=300; \
	say "5/6 closed-loop rollouts, static camera only"; \
	$(BIN)/vw2-rollout policy=$(DEMO)/finetune num_sequences=12 videos=12 workers=2 run_dir=$(DEMO)/rollout; \
	say "6/6 report"; \
	$(BIN)/vw2-report runs=[$(DEMO)/calvin-tiny,$(DEMO)] out=$(DEMO)/report

# Stage by stage: make results STAGES="data reference"; python -m benchmarks.results --help names them all.
RESULTS ?= runs/results
STAGES ?= data reference package few pretrain finetune rollouts keep page

results: $(READY) ## docs/results.md from nothing: days on two cores, goes on where it was stopped
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m benchmarks.results --out $(RESULTS) --stages $(STAGES)

test: $(READY) ## the default test suite
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-all: $(READY) ## every test that needs neither a GPU nor the network
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not gpu and not network"

lint: $(READY) ## format, lint and type checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY) ## print the tables of benchmarks/
	@for table in clip_loading clip_augmentation decode_latency environment_steps; do \
	    echo "== $$table"; TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m "benchmarks.$$table"; done

clean: ## remove build products and caches (runs/ and .venv stay)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov outputs multirun
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
