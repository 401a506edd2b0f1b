"""Preferences as rendered text, which other trainers take as they are.

python benchmarks/render.py PAIRS.jsonl TEMPLATE MODEL_DIR OUT.jsonl
"""

import sys

from ecliptica.data import formats
from ecliptica.data.templates import as_text, get_template, render_context, response_pieces
from ecliptica.files import write_lines
from model import cli
from model.tokenizer import load_tokenizer


def main(argv: list[str]) -> None:
    data, name, model_dir, out = argv
    template = get_template(name, load_tokenizer(model_dir))
    rows = []
    for preference in formats.read(data, "cita"):
        context = render_context(template, preference.prompt, preference.instruction)
        chosen, rejected = preference.responses
        row = {
            "prompt": as_text(context),
            "chosen": as_text(response_pieces(template, chosen)),
            "rejected": as_text(response_pieces(template, rejected)),
        }
        rows.append(row)
    write_lines(out, rows)


if __name__ == "__main__":
    sys.exit(cli.run(main, sys.argv[1:]))
