"""The batches of preferences on disk: an order that only the seed decides, and every epoch a
permutation."""

from types import SimpleNamespace

import torch

from ecliptica.data.offline import Offline
from ecliptica.running.ranks import ALONE, Ranks
from ecliptica.schema import Encoded

OPTIONS = SimpleNamespace(batch_preferences=4, micro_preferences=3, epochs=2, max_steps=0, seed=5)


def examples(count=10):
    return [Encoded(str(n), (1,) * (n + 1), ((2,), (3,))) for n in range(count)]


def ids(source, step, ranks=ALONE):
    return [batch.ids for batch in source.batches(step, ranks)]


def test_every_epoch_is_a_permutation_of_its_own():
    source = Offline(examples(), OPTIONS)
    assert source.steps == 6 and source.passes == 2
    epochs = [
        [name for step in range(first, first + 3) for batch in ids(source, step) for name in batch]
        for first in (0, 3)
    ]
    for epoch in epochs:
        assert sorted(epoch, key=int) == [str(n) for n in range(10)]
    assert epochs[0] != epochs[1]
    assert [len(batch) for batch in ids(source, 0)] == [2, 2]
    assert [len(batch) for batch in ids(source, 2)] == [2]


def test_a_step_depends_on_its_number_and_the_seed_alone():
    source = Offline(examples(), OPTIONS)
    want = ids(source, 4)
    torch.rand(7)
    assert ids(Offline(examples(), OPTIONS), 4) == want
    halves = [ids(source, 4, Ranks(rank, 2)) for rank in (0, 1)]
    assert sorted(sum(sum(halves, []), ())) == sorted(sum(want, ()))
    other = SimpleNamespace(**vars(OPTIONS) | {"seed": 6})
    assert ids(Offline(examples(), other), 4) != want


def test_max_steps_overrides_the_epochs_and_decides_what_is_used():
    few = SimpleNamespace(**vars(OPTIONS) | {"max_steps": 2})
    source = Offline(examples(), few)
    assert source.steps == 2 and source.passes == 1
    used = {example.id for example in source.used()}
    assert used == {name for step in (0, 1) for batch in ids(source, step) for name in batch}
    many = SimpleNamespace(**vars(OPTIONS) | {"max_steps": 7})
    assert Offline(examples(), many).passes == 3
