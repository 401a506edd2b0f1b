"""A trained reward model's own scale: mean 0 and variance 1 on what it was trained on."""

import math
from collections.abc import Sequence

from ecliptica.data.loader import micro_batches
from ecliptica.policy import rewards
from ecliptica.running.ranks import Ranks
from ecliptica.schema import Encoded
from ecliptica.training.step import as_evaluated
from model.llama import Llama
from model.lora_layer import POLICY


def set_reward_scale(
    model: Llama, examples: Sequence[Encoded], micro: int, ranks: Ranks, device: str
) -> None:
    """Give the head of the trained model the mean and the standard deviation of its rewards, over
    every response of `examples`, all ranks together.

    Collective. Raises InputError for rewards that are all the same.
    """
    here = []
    with as_evaluated(model):
        for batch in micro_batches(examples, micro, ranks.rank, ranks.world):
            of_batch = rewards(model, batch.to(device), POLICY).tolist()
            if batch.ids:  # a filler's forward is for the others' collectives
                here += of_batch

    # fsum is exact: no order and no number of ranks changes the constants.
    numbers = [number for share in ranks.gather(here) for number in share]
    mean = math.fsum(numbers) / len(numbers)
    std = math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / len(numbers))
    if not std > 0:
        raise ranks.agreed(
            f"the rewards of all {len(numbers)} responses are {mean}: there is nothing to scale; "
            "raise training.lr or training.max_steps"
        )
    head = model.scalar_heads[POLICY]
    head.mean, head.std = mean, std
