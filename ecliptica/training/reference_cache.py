"""The reference on disk: its final hidden state and lse at every response row, so that no epoch
runs the reference and the KL stays exact.

A row is D numbers in the dtype the model computes in, not V logits: the fused head makes
r = h0 W0^T again for its s = z - r. The lse, one float32 a row, is what it must come to: it is
compared before training with what this model computes, so that a cache made by other code is
refused. A part holds GROUP examples and is written whole or not at all; parts that are there are
not made again. The directory's name is a digest of the weights, the adapter merged into them, the
dtype and the token ids (template and truncation are in these), so another model or other data never
meet an old cache.
"""

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from ecliptica.arithmetic import ceil_div
from ecliptica.data.loader import micro_batches
from ecliptica.files import digest
from ecliptica.planning.reference_cost import cache_size
from ecliptica.policy import reference_rows
from ecliptica.running.ranks import Ranks
from ecliptica.running.sharding import settle
from ecliptica.schema import Encoded, PackedBatch
from model.errors import InputError
from model.llama import Llama

GROUP = 64
# Relative, between two packings of the same example: rounding. Other code is further off.
DRIFT = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
ABANDONED = 3600  # seconds after which a temporary file's writer is gone: a live one touches it
AGAIN = "start the same command again: it is made again"

States = dict[str, tuple[torch.Tensor, torch.Tensor]]  # {example key: (hidden_UD, lse_U)}


def cache_key(weights: list, dtype: torch.dtype, examples: Iterable[Encoded]) -> str:
    """The name of a cache: what its numbers are a function of."""
    sha256 = hashlib.sha256(json.dumps([weights, str(dtype)]).encode())
    for example in examples:
        sha256.update(example.key.encode())
    return sha256.hexdigest()[:32]


def weights_digest(directories: Iterable[str | Path], ranks: Ranks) -> list:
    """[(file, SHA-256)] of the weight files of the model (and the adapter merged into it), each
    file read by one rank."""
    paths = [path for directory in directories for path in Path(directory).glob("*.safetensors")]
    mine = sorted(paths)[ranks.rank :: ranks.world]
    shares = ranks.gather(ranks.together(lambda: {path.name: digest(path)[1] for path in mine}))
    return sorted(entry for share in shares for entry in share.items())


class PartFile:
    """An open part; rows are read when they are asked for."""

    def __init__(self, path: Path):
        file = safe_open(path, framework="pt").__enter__()
        self.hidden = file.get_slice("hidden")
        self.lse = file.get_slice("lse")
        self.starts = file.get_tensor("starts").tolist()
        self.sums = file.get_tensor("crc32").tolist()

    def rows(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """(hidden_UD, lse_U, the sum that their bytes had) of one of its examples."""
        here = slice(self.starts[index], self.starts[index + 1])
        return self.hidden[here], self.lse[here], self.sums[index]


class ReferenceCache:
    """The read side: a reference of policy.response_rows.

    head_VD: the reference's head; None: the policy's own, which LoRA leaves alone.
    """

    def __init__(
        self, path: Path, parts: Sequence[Sequence[Encoded]], head_VD: torch.Tensor | None = None
    ):
        self.head_VD = head_VD
        self.files: dict[Path, PartFile] = {}
        self.place: dict[str, tuple[Path, int]] = {}  # {example key: (its file, which in it)}
        for number, part in enumerate(parts):
            for index, example in enumerate(part):
                self.place[example.key] = (part_path(path, number), index)

    def __call__(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        device = batch.tokens_T.device
        states_UD = torch.cat([self.rows(key)[0] for key in batch.keys]).to(device)
        ref_TD = states_UD.new_zeros(batch.tokens_T.numel(), states_UD.shape[1])
        ref_TD[batch.rows_R.unique()] = states_UD  # ascending, as the parts were written
        return ref_TD, self.head_VD

    def rows(self, key: str) -> tuple[torch.Tensor, torch.Tensor]:
        """One example's (hidden_UD, lse_U).

        Raises InputError, after taking the part away, if its bytes are not those written.
        """
        path, index = self.place[key]
        try:
            if path not in self.files:
                self.files[path] = PartFile(path)
            hidden_UD, lse_U, want = self.files[path].rows(index)
        except (SafetensorError, OSError) as error:
            path.unlink(missing_ok=True)
            raise InputError(
                f"{path}: a part of the reference cache cannot be read ({error}) and was removed; "
                f"{AGAIN}"
            ) from error
        if crc32(hidden_UD, lse_U) != want:
            path.unlink(missing_ok=True)
            raise InputError(
                f"{path}: a part of the reference cache is corrupt and was removed; {AGAIN}"
            )
        return hidden_UD, lse_U


@dataclass(frozen=True)
class Maker:
    """Who makes a cache: all ranks together, each with the model whose adapters are the
    policy's."""

    model: Llama
    device: str
    ranks: Ranks
    micro: int  # examples of a forward, at most
    say: Callable[[str], None]
    pause: Callable[[], None]  # called by all ranks before each round; it may raise

    def build(
        self, examples: Sequence[Encoded], directory: str | Path, key: str
    ) -> tuple[Path, list[Sequence[Encoded]]]:
        """Make the parts that are missing, a part a rank at a time; (directory, parts), for
        ReferenceCache.

        Raises InputError for a cache that has no room, or that holds something else than this model
        computes.
        """
        path = Path(directory) / key
        parts = [examples[first : first + GROUP] for first in range(0, len(examples), GROUP)]
        missing = self._missing(path, key, parts)
        self._announce(path, parts, missing)

        was_training = self.model.training
        self.model.eval()
        rounds = range(0, len(missing), self.ranks.world)
        quiet = not self.ranks.main or None
        for first in tqdm(rounds, unit="part", disable=quiet, desc="reference", leave=False):
            self.pause()
            self._round(path, key, parts, missing[first : first + self.ranks.world])

        # What is on disk has to be what this model computes: one batch of it, before training.
        batch = micro_batches(parts[0], self.micro)[0]
        states = self._states(batch)
        settle(self.model)
        self.ranks.together(_compare, ReferenceCache(path, parts), states, self.model.dtype)
        self.model.train(was_training)
        return path, parts

    def _missing(self, path: Path, key: str, parts: Sequence[Sequence[Encoded]]) -> list[int]:
        """Numbers of the parts to make; one that is there and not whole is named."""

        def look():
            numbers = [n for n, part in enumerate(parts) if not whole(path, n, key, part)]
            return numbers, [n for n in numbers if part_path(path, n).exists()]

        missing, broken = self.ranks.on_main(look)
        for number in broken:
            self.say(f"{part_path(path, number)}: not a whole part of this cache: made again")
        return missing

    def _announce(
        self, path: Path, parts: Sequence[Sequence[Encoded]], missing: Sequence[int]
    ) -> None:
        """Its size, before it is written; and whether there is room for it."""
        width, dtype = self.model.config.hidden_size, self.model.dtype
        rows, size = cache_size([example for part in parts for example in part], width, dtype)
        line = (
            f"reference cache: {rows:,} hidden rows x {width} "
            f"{str(dtype).removeprefix('torch.')}, {size / 2**20:,.1f} MiB in {path}"
        )
        if len(missing) < len(parts):
            line += f"; {len(parts) - len(missing)} of {len(parts)} parts are there"
        self.say(line)
        to_write = [example for number in missing for example in parts[number]]
        self.ranks.on_main(_make_room, path, cache_size(to_write, width, dtype)[1])

    def _round(
        self, path: Path, key: str, parts: Sequence[Sequence[Encoded]], turn: Sequence[int]
    ) -> None:
        """One part on each rank. A rank without one repeats the first: with a sharded model every
        forward is a collective."""
        mine = turn[self.ranks.rank] if self.ranks.rank < len(turn) else None
        part = parts[turn[0] if mine is None else mine]
        states: States = {}
        for batch in _forwards(part, max(len(parts[number]) for number in turn), self.micro):
            states.update(self._states(batch))
        settle(self.model)

        def write():
            if mine is not None:
                _write(part_path(path, mine), key, part, states)

        self.ranks.together(write)

    def _states(self, batch: PackedBatch) -> States:
        """The reference's rows of each example of a batch, on the CPU."""
        hidden_UD, lse_U = reference_rows(self.model, batch.to(self.device))
        return _split(batch, hidden_UD.cpu(), lse_U.cpu())


def part_path(path: Path, number: int) -> Path:
    return path / f"part-{number:06d}.safetensors"


def crc32(*tensors: torch.Tensor) -> int:
    """A sum over the bytes of several tensors."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy(), value)
    return value


def whole(path: Path, number: int, key: str, part: Sequence[Encoded]) -> bool:
    """Whether a part's file is there, of this cache, and complete."""
    want = sum(example.hidden_rows for example in part)
    try:
        with safe_open(part_path(path, number), framework="pt") as file:
            rows = file.get_slice("hidden").get_shape()[0]
            return (file.metadata() or {}).get("key") == key and rows == want
    except (SafetensorError, OSError):
        return False


def _compare(cache: ReferenceCache, states: States, dtype: torch.dtype) -> None:
    """What is on disk is what this model computes, to rounding: the key knows the weights and the
    data, not the code."""
    for key, computed in states.items():
        for stored, want in zip(cache.rows(key), computed):
            distance = float((stored.float() - want.float()).norm() / want.float().norm())
            if not distance <= DRIFT[dtype]:
                raise InputError(
                    f"{cache.place[key][0].parent}: the reference cache is not what this model "
                    f"computes (relative distance {distance:.2g}): made by other code? remove it "
                    "and start again"
                )


def _forwards(part: Sequence[Encoded], most: int, micro: int) -> list[PackedBatch]:
    """A part in packed batches, as many as the largest part of this round needs."""
    batches = micro_batches(part, micro)
    return batches + batches[:1] * (ceil_div(most, micro) - len(batches))


def _split(batch: PackedBatch, hidden_UD: torch.Tensor, lse_U: torch.Tensor) -> States:
    """The distinct response rows of one batch, by example."""
    owner_U = batch.document_T[batch.rows_R.unique()]
    return {
        key: (hidden_UD[owner_U == document], lse_U[owner_U == document])
        for document, key in enumerate(batch.keys)
    }


def _make_room(path: Path, need: int) -> None:
    """Take away what killed writers left; raise InputError if `need` bytes do not fit."""
    path.mkdir(parents=True, exist_ok=True)
    for remnant in path.glob(".part-*.tmp"):
        if time.time() - remnant.stat().st_mtime > ABANDONED:
            remnant.unlink(missing_ok=True)
    free = shutil.disk_usage(path).free
    if need > free:
        raise InputError(
            f"{path}: the reference cache needs {need / 2**20:,.1f} MiB more, "
            f"{free / 2**20:,.1f} MiB are free; make room, set training.cache_dir, or use "
            "training.reference=adapter-off (LoRA) or model"
        )


def _write(path: Path, key: str, part: Sequence[Encoded], states: States) -> None:
    """A part's file, whole or not at all."""
    rows = [states[example.key] for example in part]
    tensors = {
        "hidden": torch.cat([hidden_UD for hidden_UD, _ in rows]),
        "lse": torch.cat([lse_U for _, lse_U in rows]),
        "starts": torch.tensor([0, *(len(lse_U) for _, lse_U in rows)]).cumsum(0),
        "crc32": torch.tensor([crc32(*pair) for pair in rows]),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={"key": key})
        temporary.rename(path)
    except SafetensorError as error:
        raise InputError(
            f"{path}: the reference cache could not be written ({error}); make room and start the "
            "same command again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
