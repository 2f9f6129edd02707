# Two commands: `make demo` and `make test`. Each sets up .venv first. `make -n demo` shows the plain python lines.
PYTHON ?= python3.11
BIN := .venv/bin
# Waiting threads that spin slow two torch processes on few cores about tenfold; those that sleep at once slow a single
# one twofold. 1000 turns, then sleep: measured as fast as spinning when alone, and 1.6 times sleeping when two compete.
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 1000

.PHONY: setup demo demo-long ablations test test-full bench lint
setup: .venv/installed

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# From nothing to a page of pictures: simulated EEG, stages A, B and C at miniature size.
demo: setup
	$(BIN)/python code/run.py simulate_eeg
	$(BIN)/python code/stageA1_eeg_pretrain.py preset=miniature
	$(BIN)/python code/eeg_ldm.py preset=miniature
	$(BIN)/python code/gen_eval_eeg.py preset=miniature

# The best that the miniature reaches: stage B three times as long, from an untrained encoder (docs/demo.md).
demo-long: setup
	$(BIN)/python code/run.py simulate_eeg
	$(BIN)/python code/eeg_ldm.py preset=miniature name=long pretrain_mbm_path=none num_epoch=30
	$(BIN)/python code/gen_eval_eeg.py preset=miniature name=long

# The paper's ablations at miniature size, two models at a time; a page and a CSV.
ablations: setup
	$(BIN)/python code/run.py simulate_eeg
	$(BIN)/python code/run.py run_ablations preset=miniature workers=2

test: setup
	$(BIN)/pytest

# What takes minutes, gigabytes or full-size networks: 20 GB of memory, 10 GB of disk.
test-full: setup
	$(BIN)/pytest -m full -s

bench: setup
	$(BIN)/python code/run.py benchmark

lint: setup
	$(BIN)/ruff check code
	$(BIN)/ruff format --check code
