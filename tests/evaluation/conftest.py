"""What the tests of evaluation share: a small bank, an adapter that moves the tiny model, systems
that are formulas of what is asked, and the command line in this process."""

import json
from dataclasses import dataclass, field

import pytest
import torch

import eval as evaluate
from ecliptica.evaluation import run as run_suite
from ecliptica.evaluation import suites
from model.lora import add_lora, lora_parameters, save_adapter
from model.weights import load_model
from tests.conftest import write_jsonl

BASE, TRAINED = "prompting-only", "trained"


@dataclass
class Formula:
    """A system whose number for a question is formula(instruction, prompt, response), 4 tokens a
    response; asked: every question that was put to it, in order."""

    formula: object
    digest: str = "formula"
    record: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)

    def key(self, question):
        return self.digest

    def stamp(self):
        return {}

    def number(self, question):
        return float(self.formula(question.instruction, question.prompt, question.response))

    def ask(self, questions, missing, label, control):
        self.asked += missing
        yield [(question, self.line(question)) for question in missing]

    def line(self, question):
        if question.asked == "answer":
            text = self.formula(question.instruction, question.prompt, None)
            settings = question.sampling.settings()
            return {"r": text, "tokens": 4, "truncated": False, "settings": settings}
        return {question.asked: self.number(question), "tokens": 4}


class Jsd(Formula):
    """The same for divergences: formula(first instruction, second instruction)."""

    def number(self, question):
        return float(self.formula(question.instruction, question.other_instruction))


def results_of(suite, formulas, ledger=None, kind=Formula, **options):
    """Results of a suite whose systems are formulas: one, or {label: formula}."""
    if not isinstance(formulas, dict):
        formulas = {BASE: formulas}
    systems = {label: kind(formula, label) for label, formula in formulas.items()}
    suite = suites.get(suite)
    return run_suite(suite, suite.Options(**options), systems, ledger)


def values(results, label=BASE):
    """{metric: value}."""
    return {name: cell.value for name, cell in results.systems[label].items()}


def command(suite, model, out, *options):
    """The words of a command line."""
    words = [suite, "--model", model, "--template", "chatml", "--out", out, *options]
    return [str(word) for word in words]


def run_command(suite, model, out, *options):
    """results.json of a suite, run in this process."""
    evaluate.main(command(suite, model, out, *options))
    return json.loads((out / "results.json").read_text())


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def small_bank(path, test=3, prompts=("rain", "bread", "chess", "maps", "bees", "soup")):
    """Options of a bank of two instructions in three wordings, the first prompts for testing."""
    (path / "i.toml").write_text(
        'loud = ["Shout.", "Be loud.", "Use capitals."]\n'
        'quiet = ["Whisper.", "Be calm.", "Speak softly."]\n'
    )
    entries = []
    for number, what in enumerate(prompts):
        shout = what.upper()
        entries.append(
            {
                "id": f"x{number}",
                "prompt": f"Tell me of {what}.",
                "domain": "d",
                "split": "test" if number < test else "train",
                "responses": {"loud": f"{shout}! GREAT {shout}!", "quiet": f"some {what}, softly"},
            }
        )
    write_jsonl(path / "bank.jsonl", entries)
    return ["--bank", f"{path}/bank.jsonl", "--instructions", f"{path}/i.toml"]


@pytest.fixture(scope="session")
def adapter(tiny, tmp_path_factory):
    """A LoRA adapter that moves the tiny model."""
    return moving_adapter(tiny, tmp_path_factory.mktemp("adapter") / "a", seed=1)


def moving_adapter(model_path, path, seed):
    path.mkdir()
    model = add_lora(load_model(model_path, torch.float32, "cpu"), 4, 8, ("q_proj", "v_proj"))
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in lora_parameters(model):
        parameter.data.normal_(0, 0.3, generator=generator)
    save_adapter(model, path, model_path)
    return path
