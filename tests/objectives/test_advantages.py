"""Each formula of ppo and grpo against plain float64 loops over tokens."""

import math

import pytest
import torch

from ecliptica.objectives import advantages, clipped
from ecliptica.objectives.contract import Size, Step
from model.errors import InputError
from tests.objectives.random_rows import random_rows, settings_of, size_of

GROUPS = [3, 2, 4]


@pytest.fixture
def rows():
    return random_rows(GROUPS)


def responses(rows, name, of=None):
    """[[number of each token] of each response]."""
    x_R = getattr(of or rows, name)
    return [part.tolist() for part in x_R.detach().split(rows.tokens_S.tolist())]


def flat(lists):
    return torch.tensor([x for part in lists for x in part], dtype=torch.float64)


def assert_near(got, want, what):
    assert got.shape == want.shape, what
    assert (got.double() - want).abs().max() < 1e-10, what


def test_the_three_estimators():
    """k1, k3 and exact, from the distributions themselves: k1 and k3 agree with it on average."""
    generator = torch.Generator().manual_seed(0)
    logp_V = torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(0)
    ref_V = torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(0)
    kl = sum(math.exp(p) * (p - q) for p, q in zip(logp_V.tolist(), ref_V.tolist()))
    for how in ("k1", "k3"):
        each_V = advantages.divergence(how, logp_V, ref_V, None)
        assert float((logp_V.exp() * each_V).sum()) == pytest.approx(kl, rel=1e-12), how
    k3_V = advantages.divergence("k3", logp_V, ref_V, None)
    want = [math.exp(q - p) - 1 - (q - p) for p, q in zip(logp_V.tolist(), ref_V.tolist())]
    assert_near(k3_V, torch.tensor(want, dtype=torch.float64), "k3")
    assert (k3_V >= 0).all() and (advantages.divergence("k1", logp_V, ref_V, None) < 0).any()
    given = torch.rand(50)
    assert advantages.divergence("exact", logp_V, ref_V, given) is given


def test_the_rewards_of_a_response_sum_to_its_score_less_beta_times_the_log_ratio(rows):
    got = advantages.token_rewards(rows, 0.3, "k1")
    logps, refs = responses(rows, "logp_R"), responses(rows, "ref_logp_R")
    want = []
    for logp, ref, score in zip(logps, refs, rows.scores_S.tolist()):
        of_response = [-0.3 * (p - q) for p, q in zip(logp, ref)]
        of_response[-1] += score
        want.append(of_response)
        identity = score - 0.3 * (sum(logp) - sum(ref))
        assert sum(of_response) == pytest.approx(identity, rel=1e-12)
    assert_near(got.detach(), flat(want), "k1")
    sums_S = rows.per_sequence(got.detach())
    assert_near(sums_S, torch.tensor([sum(part) for part in want], dtype=torch.float64), "sums")

    exact = advantages.token_rewards(rows, 0.3, "exact").detach()
    kls = responses(rows, "kl_R")
    scores = rows.scores_S.tolist()
    want = [[-0.3 * kl for kl in part[:-1]] + [s - 0.3 * part[-1]] for part, s in zip(kls, scores)]
    assert_near(exact, flat(want), "exact")


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0)])
def test_gae_is_the_sum_of_discounted_differences_of_each_response_alone(rows, gamma, lam):
    reward_R = advantages.token_rewards(rows, 0.1, "k1").detach()
    got = advantages.gae(reward_R, rows.values_R.detach(), rows.tokens_S, gamma, lam)
    want = []
    values = responses(rows, "values_R")
    for r, v in zip(reward_R.split(rows.tokens_S.tolist()), values):
        v = [*v, 0.0]
        delta = [float(r[t]) + gamma * v[t + 1] - v[t] for t in range(len(r))]
        for t in range(len(r)):
            want.append(sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, len(r))))
    assert_near(got, torch.tensor(want, dtype=torch.float64), "GAE")


def test_gae_of_one_response_knows_nothing_of_its_neighbours(rows):
    reward_R, values_R = torch.rand(len(rows.segments_R)), torch.rand(len(rows.segments_R))
    before = advantages.gae(reward_R, values_R, rows.tokens_S)
    of_second = rows.segments_R == 1
    reward_R, values_R = reward_R.clone(), values_R.clone()
    reward_R[of_second] += 5
    values_R[of_second] -= 3
    after = advantages.gae(reward_R, values_R, rows.tokens_S)
    assert torch.equal(before[~of_second], after[~of_second])
    assert not torch.equal(before[of_second], after[of_second])


def test_whitening_is_by_the_biased_variance():
    x = torch.randn(37, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3 + 2
    mean = sum(x.tolist()) / 37
    variance = sum((value - mean) ** 2 for value in x.tolist()) / 37
    want = [(value - mean) / math.sqrt(variance + 1e-8) for value in x.tolist()]
    assert_near(advantages.whitened(x), torch.tensor(want, dtype=torch.float64), "whitened")
    kept = advantages.whitened(x, keep_mean=True)
    assert float(kept.mean()) == pytest.approx(mean, rel=1e-12)
    assert not advantages.whitened(torch.full((4,), 2.0)).any()


@pytest.mark.parametrize("scale", advantages.SCALES)
def test_the_advantages_of_a_group(scale):
    groups = [[1.0, 0.0, -1.0], [0.5, 0.5], [3.0, 1.0, 0.0, 0.0]]
    reward_S = torch.tensor([r for group in groups for r in group])
    owner_S = torch.tensor([n for n, group in enumerate(groups) for _ in group])
    got, without = advantages.group_advantages(reward_S, owner_S, scale)

    def deviation(values):
        mean = sum(values) / len(values)
        return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-8)

    want = []
    for group in groups:
        by = {"none": 1.0, "group-std": deviation(group), "batch-std": deviation(reward_S.tolist())}
        want += [(r - sum(group) / len(group)) / by[scale] for r in group]
    assert_near(got, torch.tensor(want, dtype=torch.float64), scale)
    assert without == 1


def test_explained_variance():
    returns_R = torch.tensor([1.0, 2.0, 4.0])
    assert advantages.explained_variance(returns_R, returns_R) == 1
    assert advantages.explained_variance(torch.zeros(3), returns_R) == pytest.approx(0)
    left = [1.0 - 0.5, 2.0 - 2.5, 4.0 - 3.0]
    mean = sum(left) / 3
    want = 1 - (sum((x - mean) ** 2 for x in left) / 3) / (14 / 9)
    got = advantages.explained_variance(torch.tensor([0.5, 2.5, 3.0]), returns_R)
    assert got == pytest.approx(want)
    assert advantages.explained_variance(torch.rand(3), torch.ones(3)) == 0


def clipped_sum(rows, low, high, weight_of):
    """Sum over tokens of weight_of(response) max(-A r, -A clip(r)), in plain numbers."""
    columns = [responses(rows, "logp_R")]
    columns += [responses(rows, name, rows.sampled) for name in ("logp_R", "advantage_R")]
    total = 0.0
    for new, old, advantage in zip(*columns):
        for p, q, a in zip(new, old, advantage):
            ratio = math.exp(p - q)
            term = max(-a * ratio, -a * min(max(ratio, 1 - low), 1 + high))
            total += weight_of(len(new)) * term
    return total


@pytest.mark.parametrize("denominator", clipped.DENOMINATORS)
def test_grpo_s_loss_by_each_denominator(rows, denominator):
    from ecliptica.objectives import grpo

    config = settings_of(name="grpo", denominator=denominator, constant=40, beta=0.0)
    size = size_of(rows)
    loss = grpo.loss(rows, config, Step(0, 1, size=size)).loss / size.preferences
    weight_of = {
        "tokens": lambda tokens: 1 / size.tokens,
        "sequences": lambda tokens: 1 / (tokens * size.sequences),
        "constant": lambda tokens: 1 / (40 * size.sequences),
    }[denominator]
    want = clipped_sum(rows, 0.2, 0.28, weight_of)
    assert loss.item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("kl", ["k3", "exact"])
def test_grpo_s_kl_in_the_loss_and_its_gradient(rows, kl):
    from ecliptica.objectives import grpo

    size = size_of(rows)
    step = Step(0, 1, size=size)
    with_kl = grpo.loss(rows, settings_of(name="grpo", kl=kl, beta=0.5), step).loss
    without = grpo.loss(rows, settings_of(name="grpo", beta=0.0), step).loss
    if kl == "exact":
        want = rows.kl_R.sum()
    else:
        away = rows.sampled.ref_logp_R - rows.logp_R
        want = (away.exp() - 1 - away).sum()
    want = 0.5 * want * size.preferences / size.tokens
    assert (with_kl - without).item() == pytest.approx(want.item(), rel=1e-6)
    leaves = [rows.logp_R, rows.kl_R]
    got = torch.autograd.grad(with_kl - without, leaves, retain_graph=True, allow_unused=True)
    wanted = torch.autograd.grad(want, leaves, allow_unused=True)
    for name, one, other in zip(("logp_R", "kl_R"), got, wanted):
        if other is None:
            assert one is None or not one.any(), name
        else:
            assert (one - other).abs().max() < 1e-7, name


def test_ppo_s_losses_and_the_warm_up_of_its_critic(rows):
    from ecliptica.objectives import ppo

    config = settings_of(name="ppo", critic_warmup=3)
    size = size_of(rows)
    value = 0.0
    columns = [responses(rows, "values_R")]
    columns += [responses(rows, name, rows.sampled) for name in ("values_R", "returns_R")]
    for new, old, target in zip(*columns):
        for v, o, r in zip(new, old, target):
            near = o + min(max(v - o, -0.2), 0.2)
            value += 0.5 * max((v - r) ** 2, (near - r) ** 2) / size.tokens
    policy = clipped_sum(rows, 0.2, 0.2, lambda tokens: 1 / size.tokens)
    warming = ppo.loss(rows, config, Step(2, 9, size=size))
    assert warming.loss.item() / size.preferences == pytest.approx(0.1 * value, rel=1e-6)
    terms = ppo.loss(rows, config, Step(3, 9, size=size))
    want = policy + 0.1 * value
    assert terms.loss.item() / size.preferences == pytest.approx(want, rel=1e-6)
    assert terms.metrics["value_loss"].item() / size.preferences == pytest.approx(value, rel=1e-6)
    (gradient,) = torch.autograd.grad(warming.loss, rows.logp_R, allow_unused=True)
    assert gradient is None, "the policy moves while its critic warms up"


def test_what_is_logged_of_the_ratios(rows):
    from ecliptica.objectives import grpo

    size = size_of(rows)
    terms = grpo.loss(rows, settings_of(name="grpo", beta=0.0), Step(0, 1, size=size))
    ratios = (rows.logp_R - rows.sampled.logp_R).exp().tolist()
    pairs = list(zip(ratios, rows.sampled.advantage_R.tolist()))
    clipped_tokens = sum((r > 1.28 and a > 0) or (r < 0.8 and a < 0) for r, a in pairs)
    mean = sum(ratios) / size.tokens
    share = clipped_tokens / size.tokens
    assert 0 < share < 1
    assert terms.metrics["ratio_mean"].item() / size.preferences == pytest.approx(mean, rel=1e-5)
    assert terms.metrics["clip_share"].item() / size.preferences == pytest.approx(share, rel=1e-5)
    assert terms.largest["ratio_max"].item() == pytest.approx(max(ratios))


def test_ppo_learns_from_whitened_gae_and_returns_that_are_not_whitened(rows):
    from ecliptica.objectives import ppo

    config = settings_of(name="ppo", beta=0.2)
    with torch.no_grad():
        sampled, metrics = ppo.advantages(rows, config)
        reward_R = advantages.token_rewards(rows, 0.2, "k1")
        raw_R = advantages.gae(reward_R, rows.values_R, rows.tokens_S)
    assert float(sampled.advantage_R.mean()) == pytest.approx(0, abs=1e-6)
    assert float(sampled.advantage_R.var(correction=0)) == pytest.approx(1, rel=1e-5)
    assert (sampled.returns_R - raw_R - rows.values_R).abs().max() < 1e-5
    assert metrics["explained_variance"] < 1


def test_the_kl_is_in_the_rewards_the_loss_or_both():
    for kl_in, of_reward, of_loss in (("reward", 0.3, 0), ("loss", 0, 0.3), ("both", 0.3, 0.3)):
        config = settings_of(name="grpo", beta=0.3, kl_in=kl_in, kl="k3")
        assert (config.reward_beta, config.loss_beta) == (of_reward, of_loss)
    with pytest.raises(InputError, match="objective.kl: k1 in the loss has a gradient that is 0"):
        settings_of(name="grpo", kl="k1", kl_in="loss")


def test_a_weight_is_of_the_whole_update_whatever_the_batch(rows):
    """Half an update's rows under the size of all of it weigh what they weigh in all of it."""
    size = Size(preferences=10, sequences=40, tokens=1000)
    weight_R = clipped.weights(rows, size)
    assert torch.allclose(weight_R, torch.full_like(weight_R, 10 / 1000))
