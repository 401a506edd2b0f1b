"""The reference on disk: its final hidden state at every response row, so that no epoch runs the reference and the KL stays exact.

The fused head needs r = h0 W0^T for its s = z - r in any case, so h0 (in the dtype the model computes in) is all that is
kept: a row is D numbers, not V. A part holds GROUP examples and is written whole or not at all; parts that are there are not made again.
The directory's name is a digest of the weights, the adapter merged into them, the dtype and the token ids (template and
truncation are in these), so another model or other data never meet an old cache.
"""

import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from ecliptica.data.loader import micro_batches
from ecliptica.policy import hidden
from ecliptica.training.distributed import settle
from model.errors import InputError
from model.lora import adapters_off

GROUP = 64


def rows_of(example):
    """Hidden rows that predict an example's responses: its context's last, and all but the last of each response."""
    return 1 + sum(len(response) - 1 for response in example.responses)


def size(examples, width, dtype):
    """(rows, bytes) of the cache of these examples."""
    rows = sum(map(rows_of, examples))
    return rows, rows * width * dtype.itemsize


def unique(examples):
    """Each example once, in order: equal token ids have equal hidden states."""
    return list({example.key: example for example in examples}.values())


def cache_key(weights, dtype, examples):
    digest = hashlib.sha256(json.dumps([weights, str(dtype)]).encode())
    for example in examples:
        digest.update(example.key.encode())
    return digest.hexdigest()[:32]


def weights_digest(directories, ranks):
    """SHA-256 of the weight files of the model (and the adapter merged into it), each file read by one rank."""
    files = sorted(path for directory in directories for path in Path(directory).glob("*.safetensors"))

    def mine():
        found = {}
        for path in files[ranks.rank :: ranks.world]:
            with open(path, "rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    return sorted(entry for share in ranks.gather(ranks.together(mine)) for entry in share.items())


class Cache:
    """Read side: reference(batch) of policy.score. head_VD: the reference's head; None: the policy's own, which LoRA leaves alone."""

    def __init__(self, path, parts, head_VD=None):
        self.head_VD, self.files, self.place = head_VD, {}, {}
        for number, part in enumerate(parts):
            for index, example in enumerate(part):
                self.place[example.key] = (path / f"part-{number:06d}.safetensors", index)

    def __call__(self, batch):
        device = batch.tokens_T.device
        states_UD = torch.cat([self.states(key) for key in batch.keys]).to(device)
        ref_TD = states_UD.new_zeros(batch.tokens_T.numel(), states_UD.shape[1])
        ref_TD[batch.rows_R.unique()] = states_UD  # ascending, as the parts were written
        return ref_TD, self.head_VD

    def states(self, key):
        """One example's hidden states [rows, D]. Raises InputError, after taking the part away, if its bytes are not those written."""
        path, index = self.place[key]
        try:
            if path not in self.files:
                file = safe_open(path, framework="pt").__enter__()
                self.files[path] = file, file.get_slice("hidden"), file.get_tensor("starts").tolist(), file.get_tensor("crc32").tolist()
            _, rows, starts, sums = self.files[path]
            states_UD = rows[starts[index] : starts[index + 1]]
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: the reference cache cannot be read ({error}); start the same command again: this part is made again") from error
        if crc32(states_UD) != sums[index]:
            path.unlink(missing_ok=True)
            raise InputError(f"{path}: a part of the reference cache is corrupt and was removed; start the same command again: it is made again")
        return states_UD


def crc32(tensor):
    return zlib.crc32(tensor.contiguous().view(torch.uint8).numpy())


def whole(path, key, part):
    """Whether a part file is there, of this cache, and complete."""
    try:
        with safe_open(path, framework="pt") as file:
            rows = file.get_slice("hidden").get_shape()[0]
            return (file.metadata() or {}).get("key") == key and rows == sum(map(rows_of, part))
    except (SafetensorError, OSError):
        return False


@torch.no_grad()
def build(model, examples, directory, key, micro, device, ranks, say):
    """Make the parts that are missing, a part a rank at a time. Returns (directory, parts), for Cache."""
    path, D = Path(directory) / key, model.config.hidden_size
    parts = [examples[start : start + GROUP] for start in range(0, len(examples), GROUP)]
    missing = ranks.on_main(lambda: [n for n, part in enumerate(parts) if not whole(path / f"part-{n:06d}.safetensors", key, part)])
    rows, total = size(examples, D, model.dtype)
    say(f"reference cache: {rows:,} hidden rows x {D} {str(model.dtype).removeprefix('torch.')}, {total / 2**20:,.1f} MiB in {path}"
        + (f"; {len(parts) - len(missing)} of {len(parts)} parts are there" if len(missing) < len(parts) else ""))
    need = size([example for n in missing for example in parts[n]], D, model.dtype)[1]
    ranks.on_main(_room, path, need)
    was_training = model.training
    model.eval()
    rounds = range(0, len(missing), ranks.world)
    for first in tqdm(rounds, unit="part", disable=not ranks.main or None, desc="reference", leave=False):
        turn = missing[first : first + ranks.world]
        number = turn[ranks.rank] if ranks.rank < len(turn) else None
        most = max(len(parts[n]) for n in turn)
        own = parts[turn[0] if number is None else number]
        with adapters_off(model):
            made = {}
            for batch in _forwards(own, most, micro):
                hidden_TD = hidden(model, batch.to(device)).cpu()
                made.update(_split(hidden_TD, batch))
        settle(model)
        ranks.together(lambda: None if number is None else _write(path / f"part-{number:06d}.safetensors", key, own, made))
    model.train(was_training)
    return path, parts


def _forwards(part, most, micro):
    """A part in packed batches, as many as the largest part of this round needs: with a sharded model forwards are collectives."""
    batches = micro_batches(part, micro)
    return batches + batches[:1] * (-(-most // micro) - len(batches))


def _split(hidden_TD, batch):
    """{example key: its rows} of one batch."""
    rows_U = batch.rows_R.unique()
    owner_U = batch.document_T[rows_U]
    return {key: hidden_TD[rows_U[owner_U == document]] for document, key in enumerate(batch.keys)}


def _room(path, need):
    path.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path).free
    if need > free:
        raise InputError(f"{path}: the reference cache needs {need / 2**30:.2f} GiB more, {free / 2**30:.2f} GiB are free; make room, set "
                         "training.cache_dir, or use training.reference=adapter-off (LoRA) or model")


def _write(path, key, part, made):
    states = [made[example.key] for example in part]
    starts = torch.tensor([0, *(len(s) for s in states)]).cumsum(0)
    tensors = {"hidden": torch.cat(states), "starts": starts, "crc32": torch.tensor([crc32(s) for s in states])}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={"key": key})
        temporary.rename(path)
    except SafetensorError as error:
        raise InputError(f"{path}: the reference cache could not be written ({error}); make room and start the same command again") from error
    finally:
        temporary.unlink(missing_ok=True)
