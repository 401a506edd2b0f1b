"""A reward model: what a run with objective.name=reward exported, an adapter with a scalar head.

It is put beside the policy on the base that is in memory already; a reward model that was trained
as a whole is a second model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ecliptica import policy
from ecliptica.config import option
from ecliptica.data.packing import by_budget, pack
from ecliptica.data.templates import encode_pieces, render_context, response_pieces
from ecliptica.record import RECORD, check_base, read_record
from ecliptica.rewards.contract import Answer, Scene, Scorer
from ecliptica.schema import Encoded
from model.adapter_config import FILE as ADAPTER_CONFIG
from model.errors import InputError
from model.llama import Llama
from model.lora import adapter_names, load_adapter
from model.scalar_head import FILE as HEAD
from model.scalar_head import has_scalar_head, load_scalar_head
from model.weights import load_model

REWARD = "reward"  # the name of its adapter and of its head


@dataclass(frozen=True)
class Config:
    """The section `reward` with reward.name = "model"."""

    name: str = "model"
    path: str = option("", "the export of a run with objective.name=reward: its final/")

    def check(self) -> None:
        """A path there must be."""
        if not self.path:
            raise InputError(
                "reward.path: not set, and reward.name is model; give the final/ of a run with "
                "objective.name=reward"
            )


def check_reward(path: str | Path, template: str, base: str | Path | None) -> None:
    """Raises InputError for what is no whole export of a reward model, for another template, and
    for another base than the one that it was trained on (None: it is a whole model)."""
    path = Path(path)
    if not (path / RECORD).exists():
        raise InputError(
            f"{path}: no {RECORD} in it: not the export of a run, or of one that has not ended; "
            "expected the final/ of a run with objective.name=reward"
        )
    if not has_scalar_head(path):
        objective = read_record(path).get("objective")
        raise InputError(
            f"{path}: no {HEAD} in it (trained with objective.name={objective}); expected the "
            "final/ of a run with objective.name=reward"
        )
    trained_with = read_record(path)["template"]
    if template not in ("none", trained_with):
        raise InputError(f"{path}: was trained with template {trained_with}, not {template}")
    if base is not None:
        check_base(base, path)


def is_adapter(path: str | Path) -> bool:
    """Whether an export is an adapter, or a whole model."""
    return (Path(path) / ADAPTER_CONFIG).exists()


def scorer(config: Config, scene: Scene | None) -> Scorer:
    """answers -> rewards, by a reward model that is loaded here, or is in the scene's model already
    as the adapter "reward"."""
    if scene is None:
        raise InputError("reward.name=model computes with a model, and there is none here")
    adapter = is_adapter(config.path)
    check_reward(config.path, scene.template.name, scene.path if adapter else None)
    judge = scene.model
    if not adapter:
        device = str(judge.head_weight_VD.device)
        judge = load_model(config.path, judge.dtype, device)
        load_scalar_head(judge, config.path, REWARD)
    elif REWARD not in adapter_names(judge):
        load_adapter(judge, config.path, REWARD, trained=False)
    scene = replace(scene, model=judge)

    def rewards(answers: Sequence[Answer]) -> list[float]:
        return score_answers(scene, answers)

    return rewards


def score_answers(scene: Scene, answers: Sequence[Answer]) -> list[float]:
    """The reward of each; answers to one prompt share its computation where they stand together."""
    examples = [_encoded(scene, number, answer) for number, answer in enumerate(answers)]
    together: list[Encoded] = []
    for example in examples:
        if together and together[-1].context == example.context:
            responses = (*together[-1].responses, *example.responses)
            scores = (0.0,) * len(responses)
            together[-1] = replace(together[-1], responses=responses, scores=scores)
        else:
            together.append(example)
    return [
        reward
        for of_example in score_examples(scene.model, together, scene.batch_tokens, REWARD)
        for reward in of_example
    ]


def _encoded(scene: Scene, number: int, answer: Answer) -> Encoded:
    """An answer as it was sampled: one that was cut has no end of turn. One of no words has nothing
    but its end of turn."""
    instruction, prompt, text, ended = answer
    context = encode_pieces(scene.tokenizer, render_context(scene.template, prompt, instruction))
    response = []
    if not ended:
        response = encode_pieces(scene.tokenizer, (text,))
    if not response:
        response = encode_pieces(scene.tokenizer, response_pieces(scene.template, text))
    return Encoded(str(number), tuple(context), (tuple(response),), (0.0,))


def score_examples(
    model: Llama, examples: Sequence[Encoded], batch_tokens: int, name: str = REWARD
) -> list[list[float]]:
    """The rewards of each example's responses, in the order of `examples`."""
    return [rewards for _, rewards in sorted(_scored(model, examples, batch_tokens, name))]


def _scored(
    model: Llama, examples: Sequence[Encoded], batch_tokens: int, name: str
) -> Iterator[tuple[int, list[float]]]:
    device = model.head_weight_VD.device
    for group in by_budget(examples, batch_tokens):
        batch = pack([examples[index] for index in group]).to(device)
        rewards = iter(policy.rewards(model, batch, name).tolist())
        for index in group:
            yield index, [next(rewards) for _ in examples[index].responses]
