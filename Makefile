# One rule: every target works in a fresh clone. Set-up happens by itself, into .venv, when it is missing or when
# setup.cfg or the versions changed; only Python 3.10 to 3.13 and make are needed beforehand.
#   make PYTHON=/path/to/python3.12     choose the interpreter; default: the first of PYTHONS that is here
#   make test WORKERS=8                 parallel test processes
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# pip compiles nothing here (half of set-up); instead the first import of each module keeps its bytecode. Without that
# every process compiles torch and TensorFlow again, for seconds.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?=
# Reverb ends at 3.11, so that comes first.
PYTHONS ?= 3.11 3.10 3.12 3.13
WORKERS ?= 2
DEMO ?= runs/demo
PRIOR ?= runs/prior
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What pip gets for an environment; empty: everything, in the versions of the interpreter.
INSTALL ?=
# LeRobot asks for older versions of numpy, torch and others than ours, so it has an environment of its own.
WITH_LEROBOT := PYTHON= PYTHONS=3.12 VENV=.venv-lerobot INSTALL="-c constraints-lerobot.txt -e .[calvin] pytest beartype \
    lerobot[dataset,evaluation,training,async]"
LEROBOT ?= yes

NEWER ?= tests/golden tests/unit tests/property tests/test_import.py tests/test_house.py tests/test_configs.py
# Two test processes on two cores: one thread each, or they fight. TensorFlow's banner is not news.
TEST_ENV := OMP_NUM_THREADS=1 TF_CPP_MIN_LOG_LEVEL=3

.PHONY: help setup demo prior results configuration test test-all test-3.12 test-newer test-lerobot test-plugin lint site environments bench gpu clean

help: ## what can be done here
	@grep -hE '^[a-z0-9.-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9.-]+):.*## /  make \1\t/' | expand -t 18

setup: $(READY) ## make .venv (every other target does it when needed)

# A Python that starts, is of such a version, and can make environments; pyenv keeps its own under versions/.
$(READY): setup.cfg constraints.txt constraints-3.12.txt constraints-lerobot.txt
	@fits() { "$$1" -c "import ensurepip, sys; sys.exit('%d.%d' % sys.version_info[:2] not in '$(if $(PYTHON),3.10 3.11 3.12 3.13,$(PYTHONS))'.split())" 2>/dev/null; }; \
	found=; for python in $(if $(PYTHON),"$(PYTHON)",$(foreach v,$(PYTHONS),python$(v) /usr/bin/python$(v) $$HOME/.pyenv/versions/$(v).*/bin/python$(v)) python3); do \
	    if fits "$$python"; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "vw2_robot needs one of Python $(if $(PYTHON),3.10 to 3.13 (found no such one at $(PYTHON)),$(PYTHONS)) with venv (Debian, Ubuntu: apt install python$(firstword $(PYTHONS)) python$(firstword $(PYTHONS))-venv); then run make again." >&2; \
	    exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$("$$found" --version): several minutes, once."; \
	[ -x $(BIN)/python ] && $(BIN)/python -c 'import pip' 2>/dev/null || "$$found" -m venv --clear $(VENV); \
	versions=constraints.txt; \
	if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then versions=constraints-3.12.txt; fi; \
	$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check --no-compile --prefer-binary \
	    $(if $(INSTALL),$(INSTALL),-c $$versions -e '.[all,dev,docs]')
	@touch $@

# Every stage skips what is complete and resumes what is not, so a demo that was stopped continues where it was.
# Passive waiting: two threads of torch on a busy machine otherwise spend their time spinning.
DEMO_ENV := OMP_WAIT_POLICY=PASSIVE TF_CPP_MIN_LOG_LEVEL=3
# Three easy tasks, each from the same twelve starts for both policies: open_drawer, move_slider_left, turn_on_led.
DEMO_STARTS := protocol=single rollouts_per_task=12 sequences=[14000:14012,12000:12012,31000:31012] videos=6 workers=2

demo: $(READY) ## the whole chain, small: watch, record, pre-train, fine-tune, roll out; the report grows meanwhile
	@export $(DEMO_ENV); started=$$SECONDS; \
	say() { printf '\n== %s (%d s so far)\n' "$$1" $$((SECONDS - started)); shift; for line; do echo "   $$line"; done; }; \
	page() { $(BIN)/vw2-report runs=[$(DEMO)] out=$(DEMO)/report title="make demo"; }; \
	pretrain() { $(BIN)/pretrain-on-openx data=rlds data.path=$(DEMO)/arms model=demo run_dir=$(DEMO)/pretrain stages=$$1; }; \
	say "0/6 what comes out: the policy of the package, trained for longer, does three tasks in closed loop" \
	    "It gets the image of one static camera, and the instruction."; \
	$(BIN)/vw2-rollout policy=builtin:calvin-tiny $(DEMO_STARTS) run_dir=$(DEMO)/package; page; \
	echo "Look at the video above. To type instructions yourself: $(BIN)/vw2-live, then http://127.0.0.1:8080"; \
	say "1/6 video of other robots at another table, as an RLDS data set" \
	    "Pre-training will see its images and captions, not its actions."; \
	$(BIN)/vw2-record env=other_robots format=rlds episodes=100 workers=2 out=$(DEMO)/arms; \
	say "2/6 video prior: a video diffusion model learns how such scenes move" \
	    "It should go down: vdm/validation_loss. Meanwhile open $(DEMO)/report/report.html; it grows as stages finish."; \
	pretrain [vdm]; page; \
	say "3/6 dLDM: what changes between frames becomes latent tokens; phase 1, reader, phase 2" \
	    "It should go down: dldm/ratio_to_copy, the error over that of a still image. Alarms are normal at this length." \
	    "Then the tokens of all videos are extracted, and a policy learns to predict them from image and instruction."; \
	pretrain [dldm,latents,policy]; page; \
	say "4/6 demonstrations of three CALVIN tasks, with actions: 40 each"; \
	$(BIN)/vw2-record tasks=[open_drawer,move_slider_left,turn_on_led] episodes=120 workers=2 out=$(DEMO)/calvin; \
	say "5/6 fine-tuning: the policy gets an MLP action head and learns to act on those demonstrations" \
	    "It should go down: finetune/validation_arm_error. Beyond the paper, the head also predicts the pose of the gripper" \
	    "(aids.pose_weight=1), which helps where demonstrations are few."; \
	$(BIN)/vw2-finetune policy=$(DEMO)/pretrain data.path=$(DEMO)/calvin run_dir=$(DEMO)/finetune acting=parallel \
	    latent_steps=2 n_action_steps=2 head_lr_mult=1.0 aids.pose_weight=1.0 \
	    loop.train_steps=1200 loop.optim.lr=1.0e-3 loop.log_every=100; page; \
	say "6/6 the policy that was just trained, from the same starts as in 0/6"; \
	$(BIN)/vw2-rollout policy=$(DEMO)/finetune $(DEMO_STARTS) run_dir=$(DEMO)/trained; \
	echo "To tell your policy what to do: $(BIN)/vw2-live policy=$(DEMO)/finetune ($$((SECONDS - started)) s in all)"; page

prior: $(READY) ## the video prior from an empty folder: recordings, rendered in sampled appearances, then training; 80 minutes
	@export $(DEMO_ENV); \
	$(BIN)/vw2-record +experiment=record/prior_states workers=2 out=$(PRIOR)/states; \
	$(BIN)/vw2-record +experiment=record/prior env.data=$(PRIOR)/states workers=2 out=$(PRIOR)/video; \
	$(BIN)/vw2-train-vdm +experiment=pretrain/prior data.path=$(PRIOR)/video run_dir=$(PRIOR)/run

# Stage by stage: make results STAGES="data reference"; python -m benchmarks.results --help names them all.
RESULTS ?= runs/results
STAGES ?= data reference package few pretrain finetune rollouts keep page

results: $(READY) ## docs/results.md from an empty folder: days on two cores, continues where it was stopped
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m benchmarks.results --out $(RESULTS) --stages $(STAGES)

configuration: $(READY) ## docs/configuration.md from the docstrings of the configurations
	$(BIN)/python -m vw2_robot.command_line.configuration_page docs/configuration.md

environments: $(READY) ## docs/environments/ from the environments, with their images
	$(BIN)/python -m website.environments

# The variable keeps an advertisement of the theme out of the output.
site: $(READY) ## the documentation site in site/, without the network; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "site/index.html; with a search: $(BIN)/python -m http.server -d site"

test: $(READY) ## the default test suite
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-all: $(READY) ## every test that needs neither a GPU nor the network; LeRobot's too, where it can be downloaded
	@if [ $(LEROBOT) = yes ]; then \
	    if $(MAKE) $(WITH_LEROBOT) setup; then $(MAKE) test-lerobot; else echo "LeRobot cannot be installed here: its tests do not run" >&2; fi; \
	fi
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not gpu and not network"

# What docs/installation.md promises on Python 3.12, in an environment of its own beside .venv. torch brings CUDA there
# (7.7 GB) unless pip is offered a CPU build for this Python too, by find-links or PIP_EXTRA_INDEX_URL (docs/gpu.md).
test-3.12: ## the fast tests on Python 3.12: simulator, data readers, models, programs (no Reverb there)
	$(MAKE) PYTHON= PYTHONS=3.12 VENV=.venv-3.12 test-newer

test-newer: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(NEWER)

test-lerobot: ## the plugin with LeRobot itself on Python 3.12, in .venv-lerobot: 5 GB with the torch that it asks for
	$(MAKE) $(WITH_LEROBOT) test-plugin

# Other people's warnings are not errors of ours.
test-plugin: $(READY)
	$(TEST_ENV) PYTHONPATH=$(CURDIR)/integrations/lerobot $(BIN)/python -m pytest -W default tests/lerobot_plugin

lint: $(READY) ## format, lint and type checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY) ## the table of docs/performance.md in 15 minutes, and how costs grow; leave the machine alone meanwhile
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m benchmarks.speed
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m benchmarks.speed.growth

GPU_TABLE ?= runs/gpu/gpu.json

gpu: $(READY) ## measure a GPU in nine minutes: training, decoding, rendering; into GPU_TABLE=runs/gpu/gpu.json
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m benchmarks.gpu --out $(GPU_TABLE)

clean: ## remove build products and caches (runs/ and .venv* stay)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov outputs multirun site
	find . -name __pycache__ -type d -not -path './.venv*/*' -prune -exec rm -rf {} +
