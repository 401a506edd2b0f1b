"""Rows made of random numbers, and the checked settings of an objective."""

import torch

from ecliptica import config
from ecliptica.objectives.contract import Size
from ecliptica.recipe import Config
from ecliptica.schema import Rows, Sampled


def settings_of(**options):
    """The checked section `objective` of a recipe that says `options`."""
    table = {"model": {"path": "m"}, "data": {"train": "d"}, "objective": options}
    table["rollout"] = {"prompts": "p", "responses": 2}
    return config.from_table(Config, table, "test").objective


def random_rows(per_preference, dtype=torch.float64, seed=0):
    """Rows of preferences with so many responses each; logp_R and kl_R are leaves.

    The same numbers in every dtype. Where each has one, every other one is labelled bad.
    """
    g = torch.Generator().manual_seed(seed)
    owner_S = torch.tensor([p for p, k in enumerate(per_preference) for _ in range(k)])
    tokens_S = torch.randint(3, 30, owner_S.shape, generator=g)
    segments_R = torch.repeat_interleave(torch.arange(len(owner_S)), tokens_S)
    scores = [float(k - n) for k in per_preference for n in range(k)]
    if set(per_preference) == {1}:
        scores = [float(n % 2 == 0) for n in range(len(scores))]

    def draw(low, high):
        x_R = torch.rand(len(segments_R), generator=g, dtype=torch.float64)
        return (low + (high - low) * x_R).to(dtype)

    return Rows(
        logp_R=draw(-3, -0.1).requires_grad_(),
        segments_R=segments_R,
        owner_S=owner_S,
        scores_S=torch.tensor(scores),
        kl_R=draw(0, 0.5).requires_grad_(),
        ref_logp_R=draw(-3, -0.1),
        values_R=draw(-1, 1).requires_grad_(),
        sampled=Sampled(
            logp_R=draw(-3, -0.1),
            ref_logp_R=draw(-3, -0.1),
            advantage_R=draw(-2, 2),
            values_R=draw(-1, 1),
            returns_R=draw(-1, 1),
        ),
        rewards_S=torch.randn(len(owner_S), generator=g).to(dtype).requires_grad_(),
    )


def size_of(rows):
    """What an update from these rows alone is made from."""
    return Size(int(rows.owner_S.max()) + 1, len(rows.owner_S), len(rows.segments_R))
