"""Several adapters and scalar heads over one base: each alone is what it was, files both ways."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ecliptica import policy
from ecliptica.data.packing import pack
from ecliptica.schema import Encoded
from model.errors import InputError
from model.lora import (
    adapter,
    adapter_names,
    adapters_off,
    add_lora,
    load_adapter,
    lora_parameters,
    merge_lora,
    save_adapter,
    set_trained,
)
from model.scalar_head import add_scalar_head, draw_scalar_head, load_scalar_head, reward_deviation
from model.weights import load_model
from tests.model.test_llama import logits

IDS = list(range(100, 160))
TARGETS = {
    "policy": ("q_proj", "v_proj"),
    "critic": ("q_proj", "down_proj"),
    "reward": ("up_proj", "o_proj"),
}
EXAMPLES = [
    Encoded("a", tuple(range(300, 340)), ((5, 6, 7, 2), (9, 2), (8,))),
    Encoded("b", tuple(range(300, 345)), ((11, 12, 2), (13, 14, 15, 16, 2))),
    Encoded("c", (400, 401), ((21,), (22, 2))),
]


def add(model, name, seed):
    """An adapter and a head that move the model."""
    add_lora(model, 4, 8, TARGETS[name], seed=seed, name=name)
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in lora_parameters(model, name):
        parameter.data.normal_(std=0.1, generator=generator)
    if name != "policy":
        add_scalar_head(model, name)
        draw_scalar_head(model, name, seed, deviation=0.3)
        model.scalar_heads[name].bias.data.fill_(0.25)
    return model


@pytest.fixture
def three(tiny):
    model = load_model(tiny)
    for seed, name in enumerate(TARGETS):
        add(model, name, seed)
    return model


def test_each_of_three_adapters_is_what_it_is_alone(tiny, three):
    base = logits(load_model(tiny), IDS)
    assert torch.equal(logits(three, IDS), logits(add(load_model(tiny), "policy", 0), IDS))
    for seed, name in enumerate(TARGETS):
        alone = logits(add(load_model(tiny), name, seed), IDS)
        assert not torch.equal(alone, base), name
        with adapter(three, name):
            assert torch.equal(logits(three, IDS), alone), name
            with adapters_off(three):
                assert torch.equal(logits(three, IDS), base), f"{name}: off"
            assert torch.equal(logits(three, IDS), alone), f"{name}: on again"
    assert three.active.name == "policy"


def test_the_policy_s_names_are_those_of_a_model_with_one_adapter(tiny, three):
    """Old checkpoints and exports know no names of adapters."""
    names = {name for name, _ in add(load_model(tiny), "policy", 0).named_parameters()}
    assert {n for n in names if "lora_" in n} <= {n for n, _ in three.named_parameters()}
    q_proj = "model.layers.0.self_attn.q_proj"
    assert {f"{q_proj}.lora_A", f"{q_proj}.lora_A_critic"} <= dict(three.named_parameters()).keys()
    assert "scalar_heads.critic.weight" in dict(three.named_parameters())


def test_what_is_trained_is_said(three):
    def trained():
        return {name for name, p in three.named_parameters() if p.requires_grad}

    every = trained()
    set_trained(three, ["critic"])
    assert trained() == {n for n in every if "_critic" in n or n.startswith("scalar_heads.critic")}
    loss = policy.values(three, pack(EXAMPLES)).sum()
    loss.backward()
    gradients = {name for name, p in three.named_parameters() if p.grad is not None}
    assert gradients == trained()
    assert set_trained(three, ["critic", "policy"]) and len(trained()) > len(gradients)
    with pytest.raises(ValueError, match="no adapter"):
        set_trained(three, ["critics"])
    with pytest.raises(ValueError, match="no adapter"), adapter(three, "critics"):
        pass
    with pytest.raises(ValueError, match="several adapters"):
        merge_lora(three)


def test_a_recomputed_block_uses_the_adapter_of_its_forward(three):
    """Policy and critic in one backward, which runs when another adapter is active."""

    def gradients(recompute):
        for block in three.model.layers:
            block.recompute = recompute
        set_trained(three, ["policy", "critic"]).zero_grad()
        rows = policy.response_rows(three, pack(EXAMPLES), critic="critic")
        (rows.logp_R.sum() + (rows.values_R**2).sum()).backward()
        return {name: p.grad for name, p in three.named_parameters() if p.grad is not None}

    want, got = gradients("off"), gradients("full")
    assert want.keys() == got.keys()
    for name in want:
        assert torch.equal(want[name], got[name]), name


@pytest.mark.peer
def test_values_and_rewards_are_transformers_hidden_states_one_by_one(tiny, three, tmp_path):
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    def hidden_of(name):
        """ids -> final hidden states by transformers and peft, float64."""
        (tmp_path / name).mkdir()
        save_adapter(three, tmp_path / name, tiny, name=name)
        causal = LlamaForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        peer = PeftModel.from_pretrained(causal, tmp_path / name).eval()
        trunk = peer.base_model.model.model
        return lambda ids: trunk(torch.tensor([ids])).last_hidden_state[0].double()

    def head_of(name):
        stored = load_file(tmp_path / name / "scalar_head.safetensors")
        return lambda h: h @ stored["weight"].double() + float(stored["bias"])

    values = []
    rewards = []
    with torch.no_grad():
        critic, reward = hidden_of("critic"), hidden_of("reward")
        for example in EXAMPLES:
            for response in example.responses:
                ids = [*example.context, *response]
                first = len(example.context) - 1
                values.append(head_of("critic")(critic(ids)[first:-1]))
                rewards.append(head_of("reward")(reward(ids)[-1]))
    batch = pack(EXAMPLES)
    got = policy.values(three, batch)
    assert (got.double() - torch.cat(values)).abs().max() < 1e-5
    assert (policy.rewards(three, batch).double() - torch.stack(rewards)).abs().max() < 1e-5

    # The constants of a trained reward.
    three.scalar_heads["reward"].mean, three.scalar_heads["reward"].std = 0.7, 2.5
    want = (torch.stack(rewards) - 0.7) / 2.5
    assert (policy.rewards(three, batch).double() - want).abs().max() < 1e-5


def test_adapters_and_heads_go_to_files_and_back(tiny, three, tmp_path):
    three.scalar_heads["reward"].mean, three.scalar_heads["reward"].std = 1 / 3, 1.7
    model = load_model(tiny)
    for name in TARGETS:
        (tmp_path / name).mkdir()
        save_adapter(three, tmp_path / name, tiny, name=name)
        load_adapter(model, tmp_path / name, name, trained=name == "policy")
    assert adapter_names(model) == ("critic", "policy", "reward")
    assert model.scalar_heads.keys() == {"critic", "reward"}
    assert model.scalar_heads["reward"].mean == 1 / 3 and model.scalar_heads["reward"].std == 1.7
    for name, parameter in three.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.endswith(("lora_A", "lora_B")), name


def test_a_head_that_does_not_fit_is_named(tiny, three, tmp_path):
    with pytest.raises(InputError, match="no scalar_head.safetensors in it"):
        load_scalar_head(load_model(tiny), tmp_path)
    save_adapter(three, tmp_path, tiny, name="reward")
    path = tmp_path / "scalar_head.safetensors"
    whole = load_file(path)
    faults = [
        ({"weight": whole["weight"][1:].clone()}, r"weight is torch.float32 of shape \[47\]"),
        ({"std": torch.zeros(1, dtype=torch.float64)}, "std is 0.0; expected > 0"),
        ({"bias": torch.full((1,), torch.inf)}, "bias holds NaN or infinity"),
    ]
    for change, message in faults:
        save_file(whole | change, path)
        with pytest.raises(InputError, match=message):
            load_adapter(load_model(tiny), tmp_path)
    save_file({"weight": whole["weight"]}, path)
    with pytest.raises(InputError, match="the tensor bias is missing"):
        load_adapter(load_model(tiny), tmp_path)


def test_a_reward_s_head_is_drawn_as_said(tiny):
    model = add_scalar_head(load_model(tiny), "reward")
    head = model.scalar_heads["reward"]
    assert not head.weight.any() and not head.bias.any()
    drawn = []
    for seed in range(200):
        draw_scalar_head(model, "reward", seed, reward_deviation(48))
        drawn.append(head.weight.detach().clone())
    weights = torch.stack(drawn)
    assert weights.std().item() == pytest.approx(49**-0.5, rel=0.03)
    assert abs(weights.mean().item()) < 0.01 and not head.bias.any()
