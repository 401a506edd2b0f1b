"""The reference on disk: its final hidden state and lse at every response row, so that no epoch runs the reference and the KL stays exact.

A row is D numbers in the dtype the model computes in, not V logits: the fused head makes r = h0 W0^T again for its s = z - r. The lse, one
float32 a row, is what it must come to: it is compared before training with what this model computes, so that a cache made by other
code is refused. A part holds GROUP examples and is written whole or not at all; parts that are there are not made again.
The directory's name is a digest of the weights, the adapter merged into them, the dtype and the token ids (template and
truncation are in these), so another model or other data never meet an old cache.
"""

import hashlib
import json
import os
import shutil
import time
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from ecliptica.data.loader import micro_batches
from ecliptica.policy import reference_rows
from ecliptica.training.distributed import settle
from model.errors import InputError

GROUP = 64
DRIFT = {
    torch.float32: 1e-3,
    torch.bfloat16: 5e-2,
}  # relative, between two packings of the same example: rounding; other code is further off


def rows_of(example):
    """Hidden rows that predict an example's responses: its context's last, and all but the last of each response."""
    return 1 + sum(len(response) - 1 for response in example.responses)


def size(examples, width, dtype):
    """(rows, bytes) of the cache of these examples."""
    rows = sum(map(rows_of, examples))
    return rows, rows * (width * dtype.itemsize + 4)


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
    files = sorted(
        path for directory in directories for path in Path(directory).glob("*.safetensors")
    )

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
        states_UD = torch.cat([self.rows(key)[0] for key in batch.keys]).to(device)
        ref_TD = states_UD.new_zeros(batch.tokens_T.numel(), states_UD.shape[1])
        ref_TD[batch.rows_R.unique()] = states_UD  # ascending, as the parts were written
        return ref_TD, self.head_VD

    def rows(self, key):
        """One example's (hidden_UD, lse_U). Raises InputError, after taking the part away, if its bytes are not those written."""
        path, index = self.place[key]
        try:
            if path not in self.files:
                file = safe_open(path, framework="pt").__enter__()
                self.files[path] = (
                    file,
                    file.get_slice("hidden"),
                    file.get_slice("lse"),
                    file.get_tensor("starts").tolist(),
                    file.get_tensor("crc32").tolist(),
                )
            _, hidden, lse, starts, sums = self.files[path]
            mine = slice(starts[index], starts[index + 1])
            found = hidden[mine], lse[mine]
        except (SafetensorError, OSError) as error:
            path.unlink(missing_ok=True)
            raise InputError(
                f"{path}: a part of the reference cache cannot be read ({error}) and was removed; start the same command again: it is made again"
            ) from error
        if crc32(*found) != sums[index]:
            path.unlink(missing_ok=True)
            raise InputError(
                f"{path}: a part of the reference cache is corrupt and was removed; start the same command again: it is made again"
            )
        return found


def crc32(*tensors):
    found = 0
    for tensor in tensors:
        found = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy(), found)
    return found


def whole(path, key, part):
    """Whether a part file is there, of this cache, and complete."""
    try:
        with safe_open(path, framework="pt") as file:
            rows = file.get_slice("hidden").get_shape()[0]
            return (file.metadata() or {}).get("key") == key and rows == sum(map(rows_of, part))
    except (SafetensorError, OSError):
        return False


def build(model, examples, directory, key, micro, device, ranks, say, pause=lambda: None):
    """Make the parts that are missing, a part a rank at a time. Returns (directory, parts), for Cache. pause(): called by all ranks
    before each round. Raises InputError for a cache that has no room, or that holds something else than this model computes."""
    path, D = Path(directory) / key, model.config.hidden_size
    parts = [examples[start : start + GROUP] for start in range(0, len(examples), GROUP)]
    names = [path / f"part-{n:06d}.safetensors" for n in range(len(parts))]
    missing = ranks.on_main(
        lambda: [n for n, part in enumerate(parts) if not whole(names[n], key, part)]
    )
    for name in ranks.on_main(lambda: [str(names[n]) for n in missing if names[n].exists()]):
        say(f"{name}: not a whole part of this cache: made again")
    rows, total = size(examples, D, model.dtype)
    say(
        f"reference cache: {rows:,} hidden rows x {D} {str(model.dtype).removeprefix('torch.')}, {total / 2**20:,.1f} MiB in {path}"
        + (
            f"; {len(parts) - len(missing)} of {len(parts)} parts are there"
            if len(missing) < len(parts)
            else ""
        )
    )
    need = size([example for n in missing for example in parts[n]], D, model.dtype)[1]
    ranks.on_main(_room, path, need)
    was_training = model.training
    model.eval()
    rounds = range(0, len(missing), ranks.world)
    for first in tqdm(
        rounds, unit="part", disable=not ranks.main or None, desc="reference", leave=False
    ):
        turn = missing[first : first + ranks.world]
        number = turn[ranks.rank] if ranks.rank < len(turn) else None
        most = max(len(parts[n]) for n in turn)
        own = parts[turn[0] if number is None else number]
        pause()
        made = {}
        for batch in _forwards(own, most, micro):
            made.update(_split(batch, *(x.cpu() for x in reference_rows(model, batch.to(device)))))
        settle(model)
        ranks.together(lambda: None if number is None else _write(names[number], key, own, made))
    batch = micro_batches(parts[0], micro)[0]
    computed = [x.cpu() for x in reference_rows(model, batch.to(device))]
    settle(model)
    ranks.together(_compare, Cache(path, parts), batch, *computed)
    model.train(was_training)
    return path, parts


def _compare(cached, batch, hidden_UD, lse_U):
    """What is on disk is what this model computes, to rounding: the key knows the weights and the data, not the code."""
    for example, (want_UD, want_U) in _split(batch, hidden_UD, lse_U).items():
        found_UD, found_U = cached.rows(example)
        for found, want in ((found_UD, want_UD), (found_U, want_U)):
            apart = float((found.float() - want.float()).norm() / want.float().norm())
            if not apart <= DRIFT[hidden_UD.dtype]:
                path = cached.place[example][0].parent
                raise InputError(
                    f"{path}: the reference cache is not what this model computes (relative distance {apart:.2g}): made by other code? remove it and start again"
                )


def _forwards(part, most, micro):
    """A part in packed batches, as many as the largest part of this round needs: with a sharded model forwards are collectives."""
    batches = micro_batches(part, micro)
    return batches + batches[:1] * (-(-most // micro) - len(batches))


def _split(batch, hidden_UD, lse_U):
    """{example key: (its hidden rows, their lse)} of one batch's distinct response rows."""
    owner_U = batch.document_T[batch.rows_R.unique()]
    return {
        key: (hidden_UD[owner_U == document], lse_U[owner_U == document])
        for document, key in enumerate(batch.keys)
    }


def _room(path, need):
    path.mkdir(parents=True, exist_ok=True)
    for rest in path.glob(
        ".part-*.tmp"
    ):  # of a killed writer; one at work touches its own all the time
        if time.time() - rest.stat().st_mtime > 3600:
            rest.unlink(missing_ok=True)
    free = shutil.disk_usage(path).free
    if need > free:
        raise InputError(
            f"{path}: the reference cache needs {need / 2**20:,.1f} MiB more, {free / 2**20:,.1f} MiB are free; make room, set "
            "training.cache_dir, or use training.reference=adapter-off (LoRA) or model"
        )


def _write(path, key, part, made):
    rows = [made[example.key] for example in part]
    starts = torch.tensor([0, *(len(lse_U) for _, lse_U in rows)]).cumsum(0)
    hidden_UD, lse_U = map(torch.cat, zip(*rows))
    tensors = {
        "hidden": hidden_UD,
        "lse": lse_U,
        "starts": starts,
        "crc32": torch.tensor([crc32(*pair) for pair in rows]),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={"key": key})
        temporary.rename(path)
    except SafetensorError as error:
        raise InputError(
            f"{path}: the reference cache could not be written ({error}); make room and start the same command again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
