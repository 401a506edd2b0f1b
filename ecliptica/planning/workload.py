"""What a plan is made for: the model's shape, the GPU, and the largest micro-batch of a rank."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ecliptica import objectives
from ecliptica.arithmetic import ceil_div
from ecliptica.data import offline
from ecliptica.data.offline import Offline
from ecliptica.planning.gpus import GPUS, Gpu
from ecliptica.recipe import Config, TrainingConfig
from ecliptica.schema import Encoded
from model.config import LlamaConfig, load_config
from model.errors import InputError

LLAMA3 = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
SHAPES = {  # for planning before the weights are there
    "llama3-8b": LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        **LLAMA3,
    ),
    "llama3-70b": LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        **LLAMA3,
    ),
}
ASSUMED_STEPS = 1000  # where neither data nor training.max_steps says how many
TOKENIZERS = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class Workload:
    """What a rank has to do at most in one forward and backward, and how often."""

    examples: Sequence[Encoded]  # of the largest micro-batch
    steps: int
    source: Offline | None  # of the batches; None: no data at hand
    held_out: Sequence[Encoded]
    line: str  # where it is from, for the report

    @property
    def tokens(self) -> int:
        return sum(example.tokens for example in self.examples)

    @property
    def rows(self) -> int:
        """Response rows."""
        return sum(len(response) for example in self.examples for response in example.responses)


def chosen_gpu(config: Config) -> Gpu | None:
    """The data sheet of plan.gpu; None for a CPU. Raises InputError."""
    name = config.plan.gpu
    if name != "cpu" and name not in GPUS:
        raise InputError(f"plan.gpu: expected one of {', '.join([*GPUS, 'cpu'])}, got {name!r}")
    if config.plan.gpus % config.training.replicas:
        raise InputError(
            f"training.replicas: {config.training.replicas} does not divide "
            f"plan.gpus={config.plan.gpus}"
        )
    return GPUS.get(name)


def model_shape(config: Config) -> tuple[LlamaConfig, str]:
    """(shape, what to call it): model.path's, or a named shape where the model is not there yet."""
    path, name = config.model.path, config.plan.shape
    if (Path(path) / "config.json").exists():
        return load_config(path), path
    if name not in SHAPES:
        raise InputError(
            f"{path}: no model there, and plan.shape is {name!r}; "
            f"expected one of {', '.join(SHAPES)}"
        )
    return SHAPES[name], f"{name} (no model at {path})"


def workload(config: Config, shape: LlamaConfig) -> Workload:
    """Of the data at hand, or of what fits data.max_tokens where there is none."""
    model = Path(config.model.path)
    has_model = (model / "config.json").exists()
    has_tokenizer = any((model / name).exists() for name in TOKENIZERS)
    has_data = config.data.format == "isd" or Path(config.data.train).is_file()
    if has_model and has_tokenizer and has_data and not config.plan.tokens:
        return _measured(config)
    return _assumed(config, shape)


def _measured(config: Config) -> Workload:
    """The largest micro-batch that any rank gets in the first epoch."""
    objective = objectives.get(config.objective)
    needs = objective.needs(config.objective)
    data = offline.load(config.model.path, config.data, objective.RESPONSES, needs)
    source = Offline(data.examples, config.training)
    largest: Sequence[Encoded] = ()
    for step in range(min(source.steps, source.per_epoch)):
        parts = micro_groups(source.chosen(step), config.training, config.plan.gpus)
        largest = max([largest, *parts], key=lambda part: sum(e.tokens for e in part))
    tokens = sum(example.tokens for example in largest)
    line = (
        f"data: {config.data.train or config.data.format}, {len(data.examples)} preferences; "
        f"its largest micro-batch has {tokens:,} tokens"
    )
    return Workload(largest, source.steps, source, data.held_out, line)


def _assumed(config: Config, shape: LlamaConfig) -> Workload:
    """As many preferences as a micro-batch may have, each as long as it may be."""
    options = config.training
    per_rank = ceil_div(options.batch_preferences, config.plan.gpus)
    count = ceil_div(per_rank, ceil_div(per_rank, options.micro_preferences))
    responses = objectives.get(config.objective).RESPONSES or 2
    if config.plan.tokens:
        context = max(1, config.plan.tokens // (2 * count))
        response = max(1, context // responses)
    else:
        window = min(config.data.max_tokens, shape.max_position_embeddings)
        context = max(1, window // 2)
        response = max(1, window - context)
    examples = [
        Encoded(str(number), (1,) * context, ((1,) * response,) * responses)
        for number in range(count)
    ]
    steps = options.max_steps or ASSUMED_STEPS
    tokens = sum(example.tokens for example in examples)
    assumed = "" if options.max_steps else f"{ASSUMED_STEPS} steps assumed, "
    line = (
        f"data: none at hand; a micro-batch of {count} preferences with {context} tokens of "
        f"context and {responses} x {response} of response: {tokens:,} tokens; "
        f"{assumed}{different_preferences(options, steps):,} different preferences"
    )
    return Workload(examples, steps, None, (), line)


def different_preferences(options: TrainingConfig, steps: int) -> int:
    """How many different ones so many steps see, where there is no data to count: each comes once
    an epoch."""
    return ceil_div(options.batch_preferences * steps, options.epochs)


def micro_groups(
    chosen: Sequence[Encoded], options: TrainingConfig, gpus: int
) -> Iterator[Sequence[Encoded]]:
    """Every rank's micro-batches of a step, as the loader cuts them."""
    most = ceil_div(len(chosen), gpus)
    parts = ceil_div(most, options.micro_preferences)
    for rank in range(min(gpus, len(chosen))):
        mine = chosen[rank::gpus]
        for part in range(parts):
            group = mine[len(mine) * part // parts : len(mine) * (part + 1) // parts]
            if group:
                yield group
