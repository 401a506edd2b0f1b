"""One rollout: what is sampled, what is said of it, and that every split of it is the same step."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ecliptica.arithmetic import seed_of
from ecliptica.data.loader import micro_batches
from ecliptica.data.packing import pack
from ecliptica.objectives.contract import Size, Step
from ecliptica.online.prompts import Question
from ecliptica.online.rollouts import with_numbers
from ecliptica.policy import model_reference
from ecliptica.running.ranks import ALONE, Ranks
from ecliptica.schema import Encoded, Sampled
from ecliptica.training import loop, setup
from ecliptica.training.step import optimizer_step
from model.generate import Room, draw, generate, sample
from model.weights import load_model
from tests.model.test_llama import logits
from tests.online.conftest import END, logged
from tests.training.runs import rows as lines_of

NAMES = ("grpo", "ppo")


def run_of(config, step=0):
    """The Run of a config, built as training builds it."""
    quiet = SimpleNamespace(check=lambda name: None)
    directory = setup.RunDirectory(config)
    directory.path.mkdir(parents=True, exist_ok=True)
    with setup.prepared(config, directory, ALONE, quiet) as run:
        return run


@pytest.mark.parametrize("name", NAMES)
def test_a_run_logs_what_it_is_asked_for(online, tmp_path, name):
    overrides = ["rollout.temperature=0.7", "training.max_steps=3"]
    if name == "ppo":
        overrides.append("objective.critic_warmup=1")
    final = loop.train(online(name, *overrides))
    first, *_, last = lines = logged(tmp_path / "run")
    names = "reward kl kl_k1 kl_k3 length ended ratio_mean ratio_max clip_share entropy loss"
    names += " grad_norm generation_seconds reward_seconds update_seconds"
    names += " value_loss explained_variance" if name == "ppo" else " zero_variance_groups"
    for line in lines:
        assert all(line[key] is not None for key in names.split()), line
    assert abs(first["kl"]) < 1e-6 and abs(first["kl_k1"]) < 1e-6 and abs(first["kl_k3"]) < 1e-6
    assert 0 < first["ended"] < 1
    assert last["kl"] > 1e-4
    answers = lines_of(tmp_path / "run" / "samples.jsonl")
    assert {"prompt", "instruction", "text", "ended", "score"} <= answers[0].keys()
    assert (final / "adapter_model.safetensors").exists()


def test_responses_end_with_their_own_stop_token_or_are_cut(online, ender):
    run = run_of(online("grpo", "rollout.responses=8"))
    groups = run.source.actor.scored(run.source.actor.answered(run.source.chosen(0), 3, ALONE))
    seen = set()
    tokenizer = run.data.tokenizer
    for group in groups:
        for response, text, ended, score in zip(
            group.responses, group.texts, group.ended, group.scores
        ):
            assert END not in response[:-1]
            assert ended == (response[-1] == END)
            assert ended or len(response) == 10
            words = tokenizer.decode(list(response[:-1] if ended else response))
            assert text == words
            vowels = sum(c in "aeiou" for c in words) / max(1, len(words))
            assert score == pytest.approx(vowels - (not ended))
            seen.add(ended)
    assert seen == {True, False}


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_what_is_known_of_a_token_is_one_model_s_at_the_temperature_of_sampling(
    online, ender, temperature
):
    """log-probs, the reference's and the KL against whole logits in float64, one by one."""
    run = run_of(online("grpo", f"rollout.temperature={temperature}"))
    for name, parameter in run.learner.policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    groups = run.source.actor.answered(run.source.chosen(0), 3, ALONE)
    groups = run.source.actor.scored(groups)
    batches = [run.source.packed(groups, 2, ALONE)]
    rows = run.source.observed(groups, batches, ALONE)
    base = load_model(ender)
    want = {"logp_R": [], "ref_logp_R": [], "kl_R": []}
    with torch.no_grad():
        for group in groups:
            for response in group.responses:
                ids = [*group.question.context, *response]
                place = slice(len(group.question.context) - 1, len(ids) - 1)
                target = torch.tensor(response)[:, None]
                mine, theirs = (
                    (logits(model, ids)[place].double() / temperature).log_softmax(-1)
                    for model in (run.learner.policy, base)
                )
                want["logp_R"].append(mine.gather(1, target)[:, 0])
                want["ref_logp_R"].append(theirs.gather(1, target)[:, 0])
                want["kl_R"].append((mine.exp() * (mine - theirs)).sum(-1))
    for column, parts in want.items():
        got = getattr(rows, column).double()
        apart = (got - torch.cat(parts)).abs() / (1 + got.abs())
        assert apart.max() < 1e-3, f"{column}: {apart.max()}"
    assert rows.kl_R.mean() > 1e-3


def test_the_first_ratio_is_asserted(online, monkeypatch):
    """A sampler at another temperature than the learner's is found before the first update."""
    run = run_of(online("grpo"))
    work = run.source.work(0, ALONE)
    crooked = replace(run.learner, temperature=1.3)
    with pytest.raises(RuntimeError, match="before the first update of a rollout, not 1"):
        optimizer_step(crooked, work.updates[0], Step(0, 1), ALONE, work.check)
    optimizer_step(run.learner, work.updates[0], Step(0, 1), ALONE, work.check)


def test_another_reference_is_found_at_step_zero(online, tiny):
    run = run_of(online("grpo"))
    other = load_model(tiny)
    actor = replace(run.source.actor, reference=model_reference(other))
    with pytest.raises(RuntimeError, match="step 0: a token's KL to the reference is"):
        replace(run.source, actor=actor).work(0, ALONE)


def test_a_rollout_is_a_function_of_seed_step_and_weights(online):
    def texts(run, step):
        seed = seed_of(run.config.training.seed, step)
        groups = run.source.actor.answered(run.source.chosen(step), seed, ALONE)
        return [group.responses for group in groups]

    run, again = run_of(online("grpo")), run_of(online("grpo"))
    torch.rand(5)
    assert texts(run, 1) == texts(again, 1)
    assert texts(run, 1) != texts(run, 2)
    assert len({r for group in texts(run, 1) for r in group}) > 6, "seeds come twice"


@pytest.mark.parametrize("name", NAMES)
def test_minibatches_of_every_pass_are_a_permutation_of_their_own(online, name):
    run = run_of(online(name))
    work = run.source.work(0, ALONE)
    assert len(work.updates) == 4
    passes = [[b.ids for update in work.updates[n : n + 2] for b in update] for n in (0, 2)]
    names = [sorted(name for ids in of_pass for name in ids) for of_pass in passes]
    assert names[0] == names[1] == sorted(q.id for q in run.source.chosen(0))
    assert passes[0] != passes[1]
    first = [batch.ids for update in run.source.work(0, ALONE).updates for batch in update]
    assert first == [batch.ids for update in work.updates for batch in update]


def gradient_of(run, parts):
    """The gradient of one update, from the batches of several ranks one after another."""
    learner = run.learner
    batches = [batch for part in parts for batch in part if batch.ids]
    size = Size(
        sum(len(batch.ids) for batch in batches),
        sum(batch.num_sequences for batch in batches),
        sum(batch.rows_R.numel() for batch in batches),
    )
    learner.policy.zero_grad()
    for batch in batches:
        terms = learner.terms(batch, Step(5, 9, size=size))
        (terms.loss / size.preferences).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in learner.policy.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("denominator", ["tokens", "sequences"])
@pytest.mark.parametrize("name", NAMES)
def test_every_split_gives_the_same_gradient(online, name, denominator):
    """1 x 8, 8 x 1, and 2 ranks of 2 micro-batches each, of a policy that has moved."""
    if name == "ppo" and denominator != "tokens":
        pytest.skip("ppo has one denominator")
    overrides = ["rollout.prompts_per_step=8", "rollout.minibatches=1", "rollout.epochs=1"]
    if name == "grpo":
        overrides += [f"objective.denominator={denominator}"]
    run = run_of(online(name, *overrides))
    (update,) = run.source.work(0, ALONE).updates
    for _, parameter in run.learner.policy.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.data += 0.02 * noise

    # Take the batch apart into its groups, and lay them together in other ways.
    groups = []
    for batch in update:
        groups += alone(batch)
    known = {example.id: sampled for example, sampled in groups}
    examples = [example for example, _ in groups]

    def split(micro, rank=0, world=1):
        packed = micro_batches(examples, micro, rank, world)
        return [
            with_numbers(batch, known, [SimpleNamespace(id=examples[0].id)]) for batch in packed
        ]

    want = gradient_of(run, [split(8)])
    norm = norm_of(want)
    assert norm > 1e-3
    for what, parts in {
        "8 x 1": [split(1)],
        "2 ranks": [split(2, 0, 2), split(2, 1, 2)],
        "3 ranks": [split(8, 0, 3), split(8, 1, 3), split(8, 2, 3)],
    }.items():
        got = gradient_of(run, parts)
        assert got.keys() == want.keys()
        for parameter in want:
            apart = (got[parameter] - want[parameter]).abs().max()
            assert apart < 1e-6 * norm, f"{what}: {parameter} {apart / norm}"


def norm_of(gradient):
    """Of all parameters together: what clipping makes 1."""
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradient.values()))


def alone(batch):
    """[(Encoded, Sampled)] of each group of a packed batch."""
    taken = []
    first = 0
    owners = batch.owner_S.tolist()
    head = batch.tokens_T[batch.document_T < 0].tolist()
    for number, name in enumerate(batch.ids):
        of_group = batch.document_T == number
        prompt = head + batch.tokens_T[of_group & (batch.branch_T == 0)].tolist()
        responses = []
        for branch in range(1, owners.count(number) + 1):
            responses.append(tuple(batch.tokens_T[of_group & (batch.branch_T == branch)].tolist()))
        tokens = sum(map(len, responses))
        example = Encoded(name, tuple(prompt), tuple(responses), (0.0,) * len(responses))
        taken.append((example, batch.sampled.part(first, first + tokens)))
        first += tokens
    return taken


def test_a_group_packed_under_one_prompt_is_its_copies(online):
    """K responses under one prompt against K prompts with a response each: loss and gradient."""
    run = run_of(online("grpo", "rollout.responses=8", "rollout.minibatches=1"))
    (example, sampled), *_ = alone(run.source.work(0, ALONE).updates[0][0])
    copies, parts, first = [], [], 0
    for number, response in enumerate(example.responses):
        copies.append(Encoded(f"copy {number}", example.context, (response,), (0.0,)))
        parts.append(sampled.part(first, first + len(response)))
        first += len(response)
    packed = replace(pack([example]), sampled=sampled)
    apart = [replace(pack([copy]), sampled=part) for copy, part in zip(copies, parts)]

    rows = run.learner.rows(packed)
    size = Size(1, 8, first)
    logps = torch.cat([run.learner.rows(batch).logp_R for batch in apart])
    assert (rows.logp_R - logps).abs().max() < 1e-5

    def gradient(batches):
        run.learner.policy.zero_grad()
        total = 0.0
        for batch in batches:
            loss = run.learner.terms(batch, Step(0, 1, size=size)).loss
            loss.backward()
            total += loss.item()
        named = run.learner.policy.named_parameters()
        return total, {n: p.grad.clone() for n, p in named if p.grad is not None}

    loss, want = gradient(apart)
    got_loss, got = gradient([packed])
    assert got_loss == pytest.approx(loss, abs=1e-6)
    norm = norm_of(want)
    for name in want:
        assert (got[name] - want[name]).abs().max() < 1e-6 * norm, name


# Sampling


def test_every_token_is_drawn_by_its_probability():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05])
    logits_NV = torch.log(probabilities).repeat(4000, 1)
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(0)).tolist()
    tokens = draw(logits_NV, 1.0, uniform)
    shares = torch.bincount(tokens, minlength=5) / 4000
    assert (shares - probabilities).abs().max() < 0.02
    assert shares[1] == 0
    cold = draw(logits_NV, 0.5, uniform)
    squares = probabilities**2 / (probabilities**2).sum()
    assert (torch.bincount(cold, minlength=5) / 4000 - squares).abs().max() < 0.02
    assert draw(logits_NV[:2], 1.0, [0.0, 1 - 1e-12]).tolist() == [0, 4]


def test_copies_and_refilled_rows_give_what_each_gives_alone(ender):
    model = load_model(ender)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 400, (n,), generator=generator).tolist() for n in (5, 9, 2, 7)]
    seeds = list(range(12))
    want = []
    for number, prompt in enumerate(prompts):
        for copy in range(3):
            one = sample(model, [prompt], Room(12, 1), {END}, 1.0, [seeds[3 * number + copy]])
            want += one
    tokens_run = []
    forward = model.forward_hidden
    model.forward_hidden = lambda tokens, *rest: (
        tokens_run.append(len(tokens)) or forward(tokens, *rest)
    )
    for rows in (12, 6, 3):
        tokens_run.clear()
        assert sample(model, prompts, Room(12, rows, 3), {END}, 1.0, seeds) == want, rows
        # Each prompt once, and each response's token once but for the last, which nobody asks for.
        once = sum(map(len, prompts)) + sum(len(response) - 1 for response in want)
        assert sum(tokens_run) <= once
    assert len({len(response) for response in want}) > 3


def test_generation_is_what_it_was_beside_sampling(ender):
    """Greedy answers with and without a stop token: the stop token is not in them."""
    model = load_model(ender)
    whole = generate(model, [[5, 6, 7], [8, 9]], 12, set())
    stop = whole[0][4]
    assert generate(model, [[5, 6, 7]], 12, {stop})[0] == whole[0][: whole[0].index(stop)]


def test_ranks_answer_their_share_and_know_all(online):
    """Two ranks one after another: what they would gather is what one rank has."""
    run = run_of(online("grpo"))
    questions = run.source.chosen(0)
    want = run.source.actor.answered(questions, 7, ALONE)
    shares = []

    class Recording(Ranks):
        def gather(self, value):
            shares.append(value)
            return [value] * self.world

        def reduce(self, values, how="sum"):
            return list(values)

    for rank in (0, 1):
        run.source.actor.answered(questions, 7, Recording(rank, 2))
    got = [tuple(map(tuple, shares[n % 2][3 * (n // 2) : 3 * (n // 2) + 3])) for n in range(4)]
    assert got == [group.responses for group in want]


def test_a_sampled_part_is_a_stretch_of_tokens():
    whole = Sampled(*(torch.arange(6.0) + n for n in range(3)))
    parts = [whole.part(0, 2), whole.part(2, 6)]
    assert torch.equal(Sampled.joined(parts).advantage_R, whole.advantage_R)
    assert Sampled.joined(parts).values_R is None
    assert math.isclose(float(parts[1].logp_R[0]), 2.0)
    assert Question("a", "b", None).context == ()
