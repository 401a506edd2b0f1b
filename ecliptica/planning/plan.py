"""train.py --plan: what a run would need on a number of GPUs of a named kind, before any of them is
lit. Nothing is trained or written.

Memory comes from a dry run of the step on the meta device (memory.py) plus what sharding keeps;
time from the products that the step needs at a stated share of the data sheet's peak, or from the
bytes it communicates, whichever is longer (estimate.py).
"""

from collections.abc import Iterator
from dataclasses import replace

from ecliptica.planning.estimate import ACTIVATIONS, GIB, Estimate, estimate
from ecliptica.planning.gpus import Gpu
from ecliptica.planning.workload import Workload, chosen_gpu, model_shape, workload
from ecliptica.recipe import Config
from model.config import LlamaConfig

DOUBLINGS = 10  # of the number of GPUs, in the search for one that is enough


def report(config: Config) -> str:
    """The text that --plan prints.

    Raises InputError for an unknown GPU or a model that is nowhere.
    """
    gpu = chosen_gpu(config)
    shape, where = model_shape(config)
    work = workload(config, shape)
    needs = estimate(config, gpu, shape, work)
    trained = f"LoRA rank {config.lora.rank}" if config.lora.rank else "full fine-tuning"
    plan, shards = config.plan, config.plan.gpus // config.training.replicas
    lines = [
        f"Plan: {where}, {trained}, {config.model.dtype}, on {plan.gpus} x {plan.gpu}, "
        f"{shards} shards",
        work.line,
        "",
        *table("per GPU", needs.items | {"total": needs.total}),
        *_fit(needs, gpu),
        "",
        *table("on disk, all ranks", needs.disk),
        "",
        *_idle(config),
        *_time(config, gpu, needs, work.steps),
    ]
    if not needs.fits:
        lines += ["", *ways_out(config, gpu, shape, work)]
    return "\n".join(lines)


def table(title: str, items: dict[str, float]) -> list[str]:
    """Lines of a Markdown table of sizes in GiB."""
    width = max(len(what) for what in items)
    rows = [f"| {what:<{width}} | {size / GIB:9.2f} |" for what, size in items.items()]
    return [f"| {title:<{width}} |       GiB |", f"|{'-' * (width + 2)}|----------:|", *rows]


def _fit(needs: Estimate, gpu: Gpu | None) -> list[str]:
    if needs.memory is None:
        return []
    verdict = "fits" if needs.fits else "DOES NOT FIT"
    return [
        "",
        f"{needs.total / GIB:.1f} of {gpu.memory_gib:g} GiB: {verdict} "
        f"({needs.memory / GIB:.1f} GiB can be filled)",
    ]


def _idle(config: Config) -> list[str]:
    """A note of GPUs that a step leaves without work."""
    preferences = config.training.batch_preferences
    idle = config.plan.gpus - preferences
    if idle <= 0:
        return []
    return [
        f"note: training.batch_preferences={preferences} leaves {idle} of {config.plan.gpus} GPUs "
        "without a preference of their own in each step"
    ]


def _time(config: Config, gpu: Gpu | None, needs: Estimate, steps: int) -> list[str]:
    """Seconds of a step and hours of the run; a note where the network decides."""
    if needs.seconds is None:
        return []
    plan = config.plan
    longest = max(needs.seconds, needs.communication)
    lines = [
        f"time: {needs.seconds:.2f} s a step of products at {plan.mfu:.0%} of "
        f"{gpu.flops / 1e12:.0f} TFLOP/s (assumed), {needs.communication:.2f} s for "
        f"{needs.sent / GIB:.1f} GiB sent and received by each GPU; overlapped: "
        f"{longest:.2f} s a step, {steps * longest / 3600:.2f} h for {steps} steps"
    ]
    machines, left_over = divmod(plan.gpus, plan.gpus_per_node)
    if needs.communication > needs.seconds and machines > 1 and not left_over:
        lines.append(
            f"note: the network decides; training.replicas={machines} would shard within a machine "
            f"of {plan.gpus_per_node} only, and send gradients alone between machines"
        )
    return lines


def ways_out(config: Config, gpu: Gpu, shape: LlamaConfig, work: Workload) -> list[str]:
    """What to change: each single change and the memory it leads to, the cheap ones together, and
    how many GPUs are enough."""
    lines = ["what to change:"]

    def attempt(what: str, changed: Config, activations: float | None = None) -> Estimate:
        one = changed.training.micro_preferences == 1
        examples = work.examples[:1] if one else work.examples
        needs = estimate(changed, gpu, shape, replace(work, examples=examples), activations)
        verdict = "fits" if needs.fits else "does not fit"
        lines.append(f"  {what:<40}  {needs.total / GIB:8.1f} GiB a GPU  {verdict}")
        return needs

    for what, changed in _changes(config, work):
        attempt(what, changed)

    # To the first number of GPUs that is enough; the activations of a micro-batch stay the same.
    least = _least(config)
    if least.training != config.training:
        lines.append(
            "with training.activation_checkpointing=full training.micro_preferences=1, "
            "on more GPUs:"
        )
    activations = None
    for doubled in range(1, DOUBLINGS + 1):
        gpus = config.plan.gpus << doubled
        more = replace(least, plan=replace(config.plan, gpus=gpus))
        needs = attempt(f"plan.gpus={gpus}", more, activations)
        if needs.fits:
            break
        activations = needs.items[ACTIVATIONS]
    return lines


def _changes(config: Config, work: Workload) -> Iterator[tuple[str, Config]]:
    """(what to change, the changed config), the cheapest first."""
    options, singles = config.training, []
    if options.activation_checkpointing != "full":
        singles.append(("activation_checkpointing", "full"))
    if len(work.examples) > 1:
        singles.append(("micro_preferences", 1))
    if options.reference == "model":
        singles.append(("reference", "cache"))
    if options.replicas > 1:
        singles.append(("replicas", 1))
    for key, value in singles:
        changed = replace(options, **{key: value})
        yield f"training.{key}={value}", replace(config, training=changed)
    least = _least(config)
    if len(singles) > 1 and least.training != options:
        yield "both", least
    if config.lora.rank == 0:
        lora = replace(config.lora, rank=16)
        options = replace(options, reference="auto")
        yield "lora.rank=16", replace(config, lora=lora, training=options)


def _least(config: Config) -> Config:
    """The configuration with the fewest activations."""
    options = replace(config.training, activation_checkpointing="full", micro_preferences=1)
    return replace(config, training=options)
