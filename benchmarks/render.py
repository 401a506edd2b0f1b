"""python benchmarks/render.py PAIRS.jsonl TEMPLATE MODEL_DIR OUT.jsonl: preferences as rendered text, which other trainers take as they are."""

import json
import sys

from ecliptica.data import formats
from ecliptica.data.templates import as_text, get_template, render_context, response_pieces
from model import cli
from model.tokenizer import load_tokenizer


def main(argv):
    data, name, model_dir, out = argv
    template = get_template(name, load_tokenizer(model_dir))
    with open(out, "w", encoding="utf-8") as file:
        for p in formats.read(data, "cita"):
            row = {"prompt": as_text(render_context(template, p.prompt, p.instruction))}
            row |= {
                side: as_text(response_pieces(template, text))
                for side, text in zip(("chosen", "rejected"), p.responses, strict=True)
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
