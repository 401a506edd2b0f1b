"""train.py --plan: what a run would need on a number of GPUs of a named kind, before any of them is lit. Nothing is trained or written.

Memory comes from a dry run of the step on the meta device (dryrun.py) plus what sharding keeps; time from the products that the step
needs at a stated share of the data sheet's peak, or from the bytes it communicates, whichever is longer.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ecliptica import objectives
from ecliptica.data.loader import Batches
from ecliptica.schema import Encoded
from ecliptica.training import cache, dryrun
from ecliptica.training.hardware import GPUS, step_flops
from ecliptica.training.loop import load_data
from ecliptica.training.reference import kind
from model.config import LlamaConfig, load_config
from model.errors import InputError

SHAPES = {  # for planning before the weights are there
    "llama3-8b": LlamaConfig(
        4096, 14336, 32, 32, 8, 128, 128256, 8192, 1e-5, 500000.0, None, False
    ),
    "llama3-70b": LlamaConfig(
        8192, 28672, 80, 64, 8, 128, 128256, 8192, 1e-5, 500000.0, None, False
    ),
}
CONTEXT = 1.5  # GiB that a CUDA context, cuBLAS and NCCL take beside the tensors: an assumption
SLACK = 0.2  # of the activations: what a CPU process holds beyond live tensors, lost between the blocks of glibc's heap; measured (docs/distributed.md)
FILL = (
    0.92  # of the memory that tensors may fill: what remains is lost between the allocator's blocks
)
GIB = 2**30


@dataclass(frozen=True)
class Plan:
    items: dict  # {what: bytes}, per GPU
    memory: float  # bytes that tensors may fill on one; None for a CPU
    seconds: float | None  # per step: products; None for a CPU
    communication: float | None  # seconds per step
    sent: float  # bytes per GPU and step
    disk: dict  # {what: bytes}

    @property
    def total(self):
        return sum(self.items.values())

    @property
    def fits(self):
        return self.memory is None or self.total <= self.memory


def report(config):
    """The text that --plan prints. Raises InputError for an unknown GPU or a model that is nowhere."""
    gpu = device(config)
    shape, where = model_shape(config)
    share, steps, source = data(config, shape)
    plan = make(config, gpu, shape, share, steps)
    p = config.plan
    lines = [
        f"Plan: {where}, {'LoRA rank ' + str(config.lora.rank) if config.lora.rank else 'full fine-tuning'}, {config.model.dtype}, "
        f"on {p.gpus} x {p.gpu}, {p.gpus // config.training.replicas} shards",
        source,
        "",
        *table("per GPU", plan.items, plan.total),
    ]
    if plan.memory is not None:
        lines += [
            "",
            f"{plan.total / GIB:.1f} of {gpu.memory_gib:g} GiB: "
            + ("fits" if plan.fits else "DOES NOT FIT")
            + f" ({plan.memory / GIB:.1f} GiB can be filled)",
        ]
    lines += ["", *table("on disk, all ranks", plan.disk, None), ""]
    idle = p.gpus - config.training.batch_preferences
    if idle > 0:
        lines += [
            f"note: training.batch_preferences={config.training.batch_preferences} leaves {idle} of {p.gpus} GPUs without a preference of their own in each step"
        ]
    if plan.seconds is not None:
        longest = max(plan.seconds, plan.communication)
        lines.append(
            f"time: {plan.seconds:.2f} s a step of products at {p.mfu:.0%} of {gpu.flops / 1e12:.0f} TFLOP/s (assumed), {plan.communication:.2f} s for "
            f"{plan.sent / GIB:.1f} GiB sent and received by each GPU; overlapped: {longest:.2f} s a step, {steps * longest / 3600:.2f} h for {steps} steps"
        )
        if (
            plan.communication > plan.seconds
            and p.gpus > p.gpus_per_node
            and not p.gpus % p.gpus_per_node
        ):
            lines.append(
                f"note: the network decides; training.replicas={p.gpus // p.gpus_per_node} would shard within a machine of {p.gpus_per_node} only, and send gradients alone between machines"
            )
    if not plan.fits:
        lines += ["", *ways_out(config, gpu, shape, share, steps)]
    return "\n".join(lines)


def table(title, items, total):
    rows = [
        *((what, size) for what, size in items.items()),
        *([("total", total)] if total is not None else []),
    ]
    width = max(len(what) for what, _ in rows)
    return [
        f"| {title:<{width}} |       GiB |",
        f"|{'-' * (width + 2)}|----------:|",
        *(f"| {what:<{width}} | {size / GIB:9.2f} |" for what, size in rows),
    ]


def device(config):
    name = config.plan.gpu
    if name != "cpu" and name not in GPUS:
        raise InputError(f"plan.gpu: expected one of {', '.join([*GPUS, 'cpu'])}, got {name!r}")
    if config.plan.gpus % config.training.replicas:
        raise InputError(
            f"training.replicas: {config.training.replicas} does not divide plan.gpus={config.plan.gpus}"
        )
    return GPUS.get(name)


def model_shape(config):
    """(LlamaConfig, what to call it): model.path's, or a named shape where the model is not there yet."""
    if (Path(config.model.path) / "config.json").exists():
        return load_config(config.model.path), config.model.path
    if config.plan.shape not in SHAPES:
        raise InputError(
            f"{config.model.path}: no model there, and plan.shape is {config.plan.shape!r}; expected one of {', '.join(SHAPES)}"
        )
    return SHAPES[config.plan.shape], f"{config.plan.shape} (no model at {config.model.path})"


def data(config, shape):
    """(the examples of the largest micro-batch of a rank, steps, where they are from)."""
    options, gpus = config.training, config.plan.gpus
    model = Path(config.model.path)
    at_hand = (model / "config.json").exists() and any(
        (model / name).exists() for name in ("tokenizer.json", "tokenizer.model")
    )
    if (
        at_hand
        and not config.plan.tokens
        and (config.data.format == "isd" or Path(config.data.train).is_file())
    ):
        _, _, examples, held_out, _ = load_data(config, objectives.get(config.objective).RESPONSES)
        batches = Batches(examples, options)
        micro = [
            [e for e in part]
            for number in range(min(batches.steps, batches.per_epoch))
            for part in groups(batches.chosen(number), options, gpus)
        ]
        share = Share(max(micro, key=lambda part: sum(e.tokens for e in part)), batches, held_out)
        return (
            share,
            batches.steps,
            f"data: {config.data.train or config.data.format}, {len(examples)} preferences; its largest micro-batch has {share.tokens:,} tokens",
        )
    per_rank = -(-options.batch_preferences // gpus)
    count = -(-per_rank // -(-per_rank // options.micro_preferences))
    window = min(config.data.max_tokens, shape.max_position_embeddings)
    context = max(1, (config.plan.tokens // (2 * count)) if config.plan.tokens else window // 2)
    responses = objectives.get(config.objective).RESPONSES or 2
    response = max(1, context // responses if config.plan.tokens else window - context)
    examples = [
        Encoded(str(n), (1,) * context, ((1,) * response,) * responses) for n in range(count)
    ]
    share, steps = Share(examples, None, []), options.max_steps or 1000
    return (
        share,
        steps,
        (
            f"data: none at hand; a micro-batch of {count} preferences with {context} tokens of context and {responses} x {response} of response: "
            f"{share.tokens:,} tokens; {'' if options.max_steps else '1000 steps assumed, '}{preferences(options, steps):,} different preferences"
        ),
    )


def preferences(options, steps):
    """How many different ones so many steps see, where there is no data to count: each comes once an epoch."""
    return -(-options.batch_preferences * steps // options.epochs)


@dataclass(frozen=True)
class Share:
    examples: list  # of the largest micro-batch
    batches: Batches | None
    held_out: list

    @property
    def tokens(self):
        return sum(example.tokens for example in self.examples)

    @property
    def rows(self):
        return sum(len(response) for example in self.examples for response in example.responses)


def groups(chosen, options, gpus):
    """Every rank's micro-batches of a step, as the loader cuts them."""
    most = -(-len(chosen) // gpus)
    parts = -(-most // options.micro_preferences)
    for rank in range(min(gpus, len(chosen))):
        mine = chosen[rank::gpus]
        yield from filter(
            None,
            (mine[len(mine) * n // parts : len(mine) * (n + 1) // parts] for n in range(parts)),
        )


ACTIVATIONS = "activations and the head's workspace"


def make(config, gpu, shape, share, steps, held=None):
    """The Plan of one configuration. held: its activations in bytes, if they are known."""
    options, p = config.training, config.plan
    full, dtype = not config.lora.rank, getattr(torch, config.model.dtype)
    n = dryrun.counts(shape, config)
    frozen = n["block"] * shape.num_hidden_layers + n["root"] + n["embedding"]
    shards = p.gpus // options.replicas
    trained, width = (frozen if full else n["lora"]), dtype.itemsize
    parts = -(-(-(-options.batch_preferences // p.gpus)) // options.micro_preferences)
    chosen, cached = "none", 0
    if objectives.get(config.objective).needs_reference(config.objective):
        if share.batches:
            cached = cache.size(
                cache.unique([*share.batches.used(), *share.held_out]), shape.hidden_size, dtype
            )[1]
        else:
            cached = cache.size(share.examples[:1], shape.hidden_size, dtype)[1] * preferences(
                options, steps
            )
        chosen = kind(config, share.batches.per_epoch if share.batches else steps, steps, cached)
    stored = frozen * 4 if full else frozen * width + n["lora"] * 4
    items = {
        f"parameters, 1/{shards}" if shards > 1 else "parameters": stored / shards,
        "optimizer (two float32 moments)": 8 * trained / shards,
    }
    if parts > 1 or shards > 1:
        items["gradients (float32)"] = 4 * trained / shards
    if chosen == "model":
        items["reference, a second model"] = frozen * width / shards
    if chosen == "cache" and full:
        items["reference's head"] = n["root"] * width
    block = n["block"] * width + n["lora_block"] * 4
    if shards > 1:
        items["gathered: norm and head, three blocks"] = (
            n["root"] * width * (2 if chosen == "model" else 1) + 3 * block
        )
        items["reduce-scatter of a block (float32)"] = 4 * (n["block"] if full else n["lora_block"])
    items[ACTIVATIONS] = (
        held
        if held is not None
        else dryrun.peak(
            shape,
            config,
            share.examples,
            chosen,
            gpu is None,
            keep_gradients=parts == 1 and shards == 1,
            sharded=shards > 1,
        )
    )
    if gpu is None:
        kept = (
            4 * trained if parts == 1 and shards == 1 else 0
        )  # the gradients are among the activations
        items[ACTIVATIONS] = max(
            items[ACTIVATIONS], kept + 8 * (n["root"] if full else 0)
        )  # AdamW's two temporaries of the largest tensor; fused on CUDA
        items["lost between the allocator's blocks (measured)"] = SLACK * items[ACTIVATIONS]
    items["interpreter and libraries, as now" if gpu is None else "CUDA context (assumed)"] = (
        resident() if gpu is None else CONTEXT * GIB
    )
    disk = {"checkpoint (x training.keep_checkpoints)": 12 * trained}
    if cached:
        disk[
            "reference cache"
            + ("" if chosen == "cache" else f" (training.reference=cache; now {chosen})")
        ] = cached
    seconds = communication = None
    forwards = 2 if chosen in ("adapter-off", "model") else 1
    sent = (
        parts
        * (shards - 1)
        / shards
        * ((forwards + 1) * (frozen * width + n["lora"] * 4) + 4 * trained)
        if shards > 1
        else 0.0
    )
    between = (
        parts * 2 * (options.replicas - 1) / options.replicas * 4 * trained / shards
    )  # HSDP: the all-reduce of the gradient's shard
    if gpu:
        again = {"off": 0.0, "selective": 0.1, "full": 1.0}[options.activation_checkpointing]
        flops = parts * step_flops(shape, share.tokens, share.rows, full, forwards - 1 + again)
        seconds = flops / (p.mfu * gpu.flops)
        communication = sent / (
            gpu.link if shards <= p.gpus_per_node else gpu.network
        ) + between / (gpu.link if p.gpus <= p.gpus_per_node else gpu.network)
    memory = FILL * gpu.memory_gib * GIB if gpu else None
    return Plan(items, memory, seconds, communication, sent + between, disk)


def resident():
    """Resident bytes of this process, which has loaded what a training process loads."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


def ways_out(config, gpu, shape, share, steps):
    """What to change: each single change and the memory it leads to, the cheap ones together, and how many GPUs are enough."""
    options = config.training
    changes = {}
    if options.activation_checkpointing != "full":
        changes["training.activation_checkpointing=full"] = replace(
            config, training=replace(options, activation_checkpointing="full")
        )
    if len(share.examples) > 1:
        changes["training.micro_preferences=1"] = replace(
            config, training=replace(options, micro_preferences=1)
        )
    if options.reference == "model":
        changes["training.reference=cache"] = replace(
            config, training=replace(options, reference="cache")
        )
    if options.replicas > 1:
        changes["training.replicas=1"] = replace(config, training=replace(options, replicas=1))
    least = replace(
        config, training=replace(options, activation_checkpointing="full", micro_preferences=1)
    )
    if len(changes) > 1 and least.training != options:
        changes["both"] = least
    if config.lora.rank == 0:
        changes["lora.rank=16"] = replace(
            config, lora=replace(config.lora, rank=16), training=replace(options, reference="auto")
        )
    lines = ["what to change:"]

    def tried(what, changed, held=None):
        examples = share.examples[:1] if changed.training.micro_preferences == 1 else share.examples
        found = make(changed, gpu, shape, replace(share, examples=examples), steps, held)
        lines.append(
            f"  {what:<40}  {found.total / GIB:8.1f} GiB a GPU  {'fits' if found.fits else 'does not fit'}"
        )
        return found

    for what, changed in changes.items():
        tried(what, changed)
    if least.training != options:
        lines.append(
            "with training.activation_checkpointing=full training.micro_preferences=1, on more GPUs:"
        )
    found = None
    for doubled in range(1, 11):  # to the first number of GPUs that is enough
        gpus = config.plan.gpus << doubled
        found = tried(
            f"plan.gpus={gpus}",
            replace(least, plan=replace(config.plan, gpus=gpus)),
            found and found.items[ACTIVATIONS],
        )
        if found.fits:
            break
    return lines
