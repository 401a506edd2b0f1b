"""Log-probs of given responses: {"instruction"?, "prompt", "responses"} or {"context", "responses"} in, {"logps", "tokens"} out."""

import json
from pathlib import Path

from ecliptica.evaluation import systems
from ecliptica.evaluation.scoring import context_ids, response_ids, score_all
from ecliptica.fields import text, texts
from ecliptica.files import naming, read_records
from model.errors import InputError


def add_arguments(parser):
    systems.add_arguments(parser)
    parser.add_argument("--data", required=True, help="JSON lines in")
    parser.add_argument("--out", required=True, help="JSON lines out, in the same order")


def run(args):
    rows = read_records(
        args.data, lambda record, where: parse(record, where, args.template == "none")
    )
    check_out(args.out)
    system = systems.load(args)
    jobs = [
        (where, context_of(system, row), [encode_response(system, r) for r in row["responses"]])
        for where, row in rows
    ]
    write_lines(
        args.out,
        ({"logps": logps, "tokens": tokens} for logps, tokens, _ in score_all(system, jobs)),
    )
    print(f"{args.out}: {len(jobs)} contexts, {sum(len(job[2]) for job in jobs)} responses scored")


def parse(record, where, rendered, responses=True):
    """(where, {"context" or "prompt", "instruction", "responses"}) of an input line."""
    row = {"responses": texts(record, "responses", where, least=1)} if responses else {}
    if rendered:
        return where, row | {"context": text(record, "context", where)}
    if "context" in record and "prompt" not in record:
        raise InputError(
            f"{where}: 'context' is rendered text and needs --template none; with a template give 'prompt'"
        )
    return where, row | {
        "prompt": text(record, "prompt", where),
        "instruction": text(record, "instruction", where, required=False),
    }


def context_of(system, row):
    if system.template is None:
        return system.tokenizer.encode_rendered(row["context"])
    return context_ids(system, row["prompt"], row["instruction"])


def encode_response(system, response):
    return (
        system.tokenizer.encode_rendered(response)
        if system.template is None
        else response_ids(system, response)
    )


def check_out(path):
    """Before the work, not after it: the output's directory exists."""
    if not Path(path).parent.is_dir():
        raise InputError(f"--out {path}: no such directory {Path(path).parent}")


def write_lines(path, rows):
    with naming(path), open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
