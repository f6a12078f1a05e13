# Plain `make` prints the targets. Everything runs in one virtual environment, .venv, of pinned versions.
PYTHON ?= python3
VENV := .venv
MERTOOL := $(VENV)/bin/mertool
DEMO := build/demo
# RAVDESS as FLAC with labels.csv and EmoBox's folds (see tests/bench/acoustic.py).
RAVDESS ?= ../shared/data/ravdess
# CMU-MOSI's utterance features of Poria et al., mosi_bclstm.npz (see tests/bench/mosi.py).
MOSI ?= ../shared/data/mosi
# Real encoders in the form of Hugging Face: whisper-base, whisper-tiny-en, minilm-l6 (see tests/bench/claims.py).
WEIGHTS ?= ../weights

.PHONY: help setup demo test test-slow lint docs fuzz crash bench bench-memory bench-probe bench-finetune bench-acoustic bench-align bench-fuse bench-predict bench-mosi bench-asr bench-mean-shift bench-claims gpu clean
.DEFAULT_GOAL := help

help:
	@echo "make setup   the environment .venv, from constraints.txt"
	@echo "make demo    the whole pipeline on the clips of data/demo, into $(DEMO)"
	@echo "make test    the quick tests (about 10 minutes on two cores)"
	@echo "make test-slow   tests that kill processes, fill disks, start Ray or torchrun, or run for long"
	@echo "make lint    style, format and types"
	@echo "make docs    the command reference docs/reference.md, from the declarations of the options"
	@echo "make fuzz    extraction over 1,000 damaged files (about 6 min)"
	@echo "make crash   an extraction killed 100 times, and resumed (about 9 min)"
	@echo "make bench   extraction against a plain script, into build/bench/extract.json (about 12 min)"
	@echo "make bench-memory   peak memory for 1,000 and 10,000 clips (about 10 min)"
	@echo "make bench-probe   probes of all layers against scikit-learn, into build/bench/probe.json (about 5 min)"
	@echo "make bench-finetune   training from the stored prefix against every block, into build/bench/finetune.json (about 8 min)"
	@echo "make bench-acoustic   a small HuBERT pre-trained, probed, adapted on RAVDESS, into build/bench/acoustic.json (about 3 h)"
	@echo "make bench-align   alignment over a store of 20,000 clips: memory and speed, into build/bench/align.json"
	@echo "make bench-fuse   the official protocol, all models at once against one at a time, into build/bench/fuse.json"
	@echo "make bench-predict   predict against extract for each store of a bundle, into build/bench/predict.json"
	@echo "make bench-mosi   fusion on CMU-MOSI, into build/bench/mosi.json"
	@echo "make bench-asr   speech recognition on speech, in noise and without speech, into build/bench/asr.json (about 5 min)"
	@echo "make bench-mean-shift   whether the mean offset of adapters leaks labels or lowers scores, into build/bench/mean_shift.json (about 5 min)"
	@echo "make gpu     everything that only a GPU can show, into build/bench/gpu.json (at most 35 min; it resumes)"
	@echo "make bench-claims   the paper's claims on real encoders, into build/bench/claims.json (many hours; it resumes)"
	@echo "make clean   remove build/ and caches (the environment stays)"

setup: $(VENV)/.ready

$(VENV)/.ready: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash data/demo/run.sh $(DEMO)

# One thread per worker: the models of the tests are too small for more.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile

test: setup
	$(PYTEST) -m "not slow"

test-slow: setup
	$(PYTEST) -m slow

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: setup
	$(VENV)/bin/python -m mertool.cli.reference > docs/reference.md

fuzz: setup
	$(VENV)/bin/python tests/fuzz.py --count 1000

crash: setup
	$(VENV)/bin/python tests/crash.py --kills 100

bench: setup
	$(VENV)/bin/python tests/bench/extract.py

bench-memory: setup
	$(VENV)/bin/python tests/bench/memory.py

bench-probe: setup
	$(VENV)/bin/python tests/bench/probe.py

bench-finetune: setup
	$(VENV)/bin/python tests/bench/finetune.py

bench-acoustic: setup
	$(VENV)/bin/python tests/bench/acoustic.py $(RAVDESS)

bench-align: setup
	$(VENV)/bin/python tests/bench/align.py

bench-fuse: setup
	$(VENV)/bin/python tests/bench/fuse.py

bench-predict: setup
	$(VENV)/bin/python tests/bench/predict.py

bench-mosi: setup
	$(VENV)/bin/python tests/bench/mosi.py $(MOSI)

bench-asr: setup
	$(VENV)/bin/python tests/bench/asr.py $(RAVDESS) $(WEIGHTS)/whisper-base $(WEIGHTS)/whisper-tiny-en

bench-mean-shift: setup
	$(VENV)/bin/python tests/bench/mean_shift.py

gpu: setup
	$(VENV)/bin/python tests/bench/gpu.py

bench-claims: setup
	$(VENV)/bin/python tests/bench/claims.py --ravdess $(RAVDESS) --mosi $(MOSI) --weights $(WEIGHTS)

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
