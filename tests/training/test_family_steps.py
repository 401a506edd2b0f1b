"""Training of Qwen2, Qwen3 and Mistral, on 1 and 2 processes: equal to transformers' and peft's."""

import pytest
import torch
import torch.nn.functional as F

from ecliptica import config
from ecliptica.planning import memory
from ecliptica.recipe import Config
from ecliptica.training import loop
from ecliptica.training.reference import starting_model
from model.config import load_config
from model.lora import lora_parameters
from tests.conftest import write_jsonl
from tests.families import FAMILY_SETTINGS, peer_model, write_family
from tests.training.runs import examples_of, rows, weights
from tests.training.test_distributed import launch

STEPS = 2  # each of all preferences; in the second the KL is not 0
KL_WEIGHTS = (0.01, 0.1)
BETA = 0.1
LR = 3e-4
RECIPE = """
[model]
dtype = "float32"
[data]
train = "{data}"
[lora]
rank = 4
[objective]
name = "cita"
beta = 0.1
[training]
max_steps = 2
batch_preferences = 4
micro_preferences = 2
warmup = 0.0
weight_decay = 0.0
schedule = "constant"
lr = 3e-4
"""
KINDS = {"full": ("lora.rank=0",), "lora": ()}
# How many processes each runs on: a bias and norms of heads, trained and frozen, whole and sharded.
CASES = {
    "qwen2-full": 1,
    "qwen2-lora": 2,
    "qwen3-full": 2,
    "qwen3-lora": 1,
    "mistral-full": 1,
    "mistral-lora": 2,
}
# AdamW divides by a gradient's size, so rounding of a small one is seen in what starts from 0.
NEAR = {"full": 1e-5, "lora": 2e-4}


@pytest.fixture(scope="module")
def place(tmp_path_factory, smollm2, preferences):
    """Every case, trained."""
    path = tmp_path_factory.mktemp("families")
    data = write_jsonl(path / "train.jsonl", preferences[:4])
    (path / "r.toml").write_text(RECIPE.format(data=data))
    for family in FAMILY_SETTINGS:
        write_family(path / family, smollm2, family)
    launch(path, 2, [command(path, case) for case, processes in CASES.items() if processes == 2])
    for case, processes in CASES.items():
        if processes == 1:
            loop.train(settings_of(path, case))
    return path


def settings_of(path, case):
    recipe, *overrides = command(path, case)
    return config.load(Config, recipe, overrides)


def command(path, case):
    """The arguments of a training run."""
    family, _, kind = case.partition("-")
    places = (f"model.path={path / family}", f"run.dir={path}/{case}")
    return [f"{path}/r.toml", *KINDS[kind], *places]


# The oracle: the objective written out on transformers' logits, a response at a time


def numbers_of(policy, reference, context, response):
    """(log-prob of a response, sum over its tokens of KL(policy | reference))."""
    ids = torch.tensor([[*context, *response]])
    first = len(context) - 1
    logp_RV = policy(ids).logits[0, first:-1].log_softmax(-1)
    with torch.no_grad():
        ref_logp_RV = reference(ids).logits[0, first:-1].log_softmax(-1)
    logp = logp_RV.gather(1, torch.tensor(response)[:, None]).sum()
    return logp, (logp_RV.exp() * (logp_RV - ref_logp_RV)).sum()


def peer_loss(policy, reference, examples, kl_weight):
    """CITA: the mean of -log sigmoid(beta (chosen - rejected)) + lambda KL."""
    total = 0.0
    for example in examples:
        (chosen, kl), (rejected, other_kl) = (
            numbers_of(policy, reference, example.context, response)
            for response in example.responses
        )
        total = total - F.logsigmoid(BETA * (chosen - rejected)) + kl_weight * (kl + other_kl)
    return total / len(examples)


def trained_peer(policy, reference, examples):
    """The losses of two AdamW steps, which move `policy`."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
    losses = []
    for kl_weight in KL_WEIGHTS:
        loss = peer_loss(policy, reference, examples, kl_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def full_peer(path):
    """transformers' model with every parameter trained; its tensors by their names in files."""
    policy = peer_model(path)
    return policy, dict(policy.named_parameters())


def lora_peer(path, settings):
    """peft's model with the factors that ours start from; its factors by their names in files."""
    from peft import LoraConfig, get_peft_model

    lora = settings.lora
    options = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
    policy = get_peft_model(peer_model(path), options)
    factors = {
        name.replace(".default.", "."): parameter
        for name, parameter in policy.named_parameters()
        if "lora_" in name
    }
    with torch.no_grad():
        for name, start in lora_parameters(starting_model(settings, "cpu", trained=True)):
            factors[f"base_model.model.{name}.weight"].copy_(start)
    return policy, factors


@pytest.mark.peer
@pytest.mark.parametrize("case", CASES)
def test_two_steps_equal_those_of_transformers_and_peft(case, place, tokenizer):
    """The losses, and what is exported."""
    family, _, kind = case.partition("-")
    settings = settings_of(place, case)
    if kind == "lora":
        policy, tensors = lora_peer(place / family, settings)
    else:
        policy, tensors = full_peer(place / family)
    start = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    losses = trained_peer(policy, peer_model(place / family), examples_of(settings, tokenizer))

    got = [row["loss"] for row in rows(place / case / "metrics.jsonl")]
    assert got == pytest.approx(losses, rel=1e-5)
    exported = weights(place / case)
    assert exported.keys() == tensors.keys()
    for name, tensor in tensors.items():
        want = tensor.detach()
        off = float((exported[name] - want).norm() / want.norm())
        assert off <= NEAR[kind], (name, off)
        assert not torch.equal(want, start[name]), name


@pytest.mark.peer
@pytest.mark.parametrize("family", FAMILY_SETTINGS)
def test_the_plan_counts_every_parameter(family, place):
    """Biases and norms of heads too: what is frozen, and what LoRA adds."""
    settings = settings_of(place, f"{family}-lora")
    shape = load_config(place / family)
    got = memory.counts(shape, settings)
    policy, factors = lora_peer(place / family, settings)
    lora = sum(factor.numel() for factor in factors.values())
    frozen = sum(parameter.numel() for parameter in policy.parameters()) - lora
    assert got["lora"] == lora
    blocks = shape.num_hidden_layers * got["block"]
    assert blocks + got["root"] + got["embedding"] == frozen
