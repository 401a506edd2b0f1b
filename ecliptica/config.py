"""The configuration of a run: frozen dataclasses, filled from a TOML recipe, then from key=value. Unknown keys and wrong types fail."""

import difflib
import tomllib
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import get_args, get_origin

from model.errors import InputError

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class ModelConfig:
    path: str = ""  # Hugging Face directory
    dtype: str = "bfloat16"  # what it computes in; trained parameters are stored in float32
    adapter: str = ""  # a LoRA adapter merged into the base first: training continues from it, and the reference has it too


@dataclass(frozen=True)
class DataConfig:
    train: str = ""
    eval: str = ""  # held-out preferences for training.eval_every; "": none
    format: str = "cita"
    template: str = "auto"  # "auto": the chat template whose control tokens the tokenizer has
    max_tokens: int = 2048  # context + longest response
    keep_prompt_tokens: int = 32  # of the prompt's end, which a long response may not push out
    on_error: str = "stop"  # "skip" counts bad lines instead
    contrastive: bool = False  # paper 4.2: the context shows the rejected response
    use_instruction: bool = True  # False: train without I (one side of the 2 x 2)
    isd_instructions: str = ""  # isd_*: for format = "isd" alone, where train is a bank ("": the shipped one); "": the shipped instructions
    isd_rounds: int = 1  # how often each response is chosen against a rejected one of each kind
    isd_seed: int = 0  # of the pairing
    isd_scores: str = ""  # samples.jsonl of `eval.py switch --split train`: adds the hardest wrong responses; "": none
    isd_system: str = ""  # whose scores in that file; "": the last


@dataclass(frozen=True)
class ObjectiveConfig:
    name: str = "cita"
    beta: float = 0.1
    kl: str = "exact"
    kl_weight_start: float = 0.01  # lambda, annealed linearly over training
    kl_weight_end: float = 0.1
    logp: str = "sum"  # "mean": length-normalised
    reference_free: bool | None = None  # None: the objective's own (dpo no; unified, cita yes)
    preference_weight: float = 1.0  # lambda_1 of unified
    ablation: bool = False  # lifts cita's lambda > 0; stamped on every output


@dataclass(frozen=True)
class LoraConfig:
    rank: int = 8  # 0: full fine-tuning
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: float = 0.0


@dataclass(frozen=True)
class TrainingConfig:
    epochs: int = 3
    max_steps: int = 0  # 0: as many as the epochs give
    batch_preferences: int = 8  # per optimizer step
    micro_preferences: int = 8  # per forward and backward
    lr: float = 2e-5
    weight_decay: float = 0.0
    warmup: float = 0.1  # share of the steps
    schedule: str = "cosine"
    clip_norm: float = 1.0
    seed: int = 0
    reference: str = "auto"  # adapter-off | cache | model; auto: cache for several epochs within its budget, else adapter-off (LoRA) or model
    cache_budget_gib: float = 0.0  # how much disk "auto" may give the cache
    cache_dir: str = ""  # "": run.dir/cache; runs with the same model and data can share one
    replicas: int = 1  # HSDP: the model is sharded over (processes / replicas), and repeated
    activation_checkpointing: str = "off"  # selective: keep products and attention, make the rest again; full: keep block inputs only
    compile: bool = False  # torch.compile of each block
    checkpoint_every: int = 100  # steps; 0: only when stopped by a signal
    keep_checkpoints: int = 2
    stall_seconds: float = 60.0  # a rank that others wait for so long is named
    eval_every: int = 0
    sample_every: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class SamplesConfig:
    """Fixed prompts, each answered under every instruction at training.sample_every: switching is seen to happen."""

    prompts: tuple[str, ...] = ("Is remote work beneficial for long-term productivity?",)
    instructions: tuple[str, ...] = (
        "Answer as a careful adviser who puts safety first.",
        "Answer in a playful, poetic way.",
    )
    max_new_tokens: int = 48


@dataclass(frozen=True)
class RunConfig:
    dir: str = ""  # "": runs/<recipe name>


@dataclass(frozen=True)
class PlanConfig:
    """For --plan alone; no part of a run."""

    gpus: int = 8
    gpu: str = "h100-80gb"
    gpus_per_node: int = 8
    mfu: float = 0.4  # of the dense bfloat16 peak; an assumption, measure yours
    shape: str = ""  # of a model that is not at model.path yet: see ecliptica/training/plan.py
    tokens: int = 0  # of a micro-batch; 0: the largest of data.train, or the worst that data.max_tokens allows where there is no data


@dataclass(frozen=True)
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    run: RunConfig = field(default_factory=RunConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)


CHOICES = {
    "model.dtype": ("float32", "bfloat16"),
    "data.on_error": ("stop", "skip"),
    "objective.kl": ("exact", "printed", "logratio", "none"),
    "objective.logp": ("sum", "mean"),
    "training.schedule": ("cosine", "constant"),
    "training.reference": ("auto", "adapter-off", "cache", "model"),
    "training.activation_checkpointing": ("off", "selective", "full"),
    "training.device": ("auto", "cpu", "cuda"),
}
ABOVE_ZERO = (
    "objective.beta",
    "lora.alpha",
    "training.lr",
    "training.batch_preferences",
    "training.micro_preferences",
    "training.epochs",
    "training.clip_norm",
    "data.max_tokens",
    "data.keep_prompt_tokens",
    "samples.max_new_tokens",
    "data.isd_rounds",
    "training.replicas",
    "training.keep_checkpoints",
    "training.stall_seconds",
    "plan.gpus",
    "plan.gpus_per_node",
    "plan.mfu",
)
NOT_BELOW_ZERO = (
    "objective.kl_weight_start",
    "objective.kl_weight_end",
    "objective.preference_weight",
    "lora.rank",
    "training.max_steps",
    "training.weight_decay",
    "training.warmup",
    "training.seed",
    "training.eval_every",
    "training.sample_every",
    "training.checkpoint_every",
    "training.cache_budget_gib",
    "plan.tokens",
)


def load(recipe, overrides=()):
    """The Config of a recipe (a TOML path, or a name in ecliptica/recipes) with `section.key=value` overrides applied and checked."""
    path = recipe_path(recipe)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}; expected a TOML recipe"
        ) from error
    for override in overrides:
        key, equals, value = override.partition("=")
        section, dot, leaf = key.partition(".")
        if not (equals and dot and leaf):
            raise InputError(
                f"{override!r}: expected section.key=value, such as objective.beta=0.1"
            )
        table = raw.setdefault(section, {})
        if not isinstance(table, dict):
            raise InputError(f"{path}: {section!r} must be a table")
        table[leaf] = _literal(value)
    config = _build(Config, raw, "", str(path))
    if not config.run.dir:
        config = _build(Config, raw | {"run": {"dir": f"runs/{path.stem}"}}, "", str(path))
    return check(config)


def recipe_path(recipe):
    path = Path(recipe)
    if path.suffix == ".toml" or path.exists():
        if not path.exists():
            raise InputError(f"{recipe}: no such recipe file")
        return path
    shipped = RECIPES / f"{recipe}.toml"
    if not shipped.exists():
        names = sorted(p.stem for p in RECIPES.glob("*.toml"))
        raise InputError(
            f"{recipe}: no such recipe; expected a TOML path or one of {', '.join(names)}{_hint(str(recipe), names)}"
        )
    return shipped


def check(config):
    """The rules that types alone do not say. Returns the config."""
    for key, allowed in CHOICES.items():
        if (value := value_of(config, key)) not in allowed:
            raise InputError(
                f"{key}: expected one of {', '.join(allowed)}, got {value!r}{_hint(str(value), allowed)}"
            )
    for keys, good, wanted in (
        (ABOVE_ZERO, lambda v: v > 0, "> 0"),
        (NOT_BELOW_ZERO, lambda v: v >= 0, ">= 0"),
    ):
        for key in keys:
            if not good(value := value_of(config, key)):
                raise InputError(f"{key}: expected {wanted}, got {value}")
    for key, default in vars(DataConfig()).items():
        if (
            key.startswith("isd_")
            and config.data.format != "isd"
            and getattr(config.data, key) != default
        ):
            raise InputError(
                f"data.{key}: for data.format=isd alone, got data.format={config.data.format}"
            )
    for key in ("model.path", "data.train"):
        if not value_of(config, key) and not (key == "data.train" and config.data.format == "isd"):
            raise InputError(f"{key}: not set; give it in the recipe or as {key}=PATH")
    if config.lora.rank == 0 and config.training.reference == "adapter-off":
        raise InputError(
            "training.reference: adapter-off needs LoRA, but lora.rank is 0; use training.reference=model"
        )
    if config.lora.rank > 0 and not config.lora.targets:
        raise InputError("lora.targets: empty; expected layer names such as q_proj, v_proj")
    if config.training.warmup > 1:
        raise InputError(
            f"training.warmup: a share of the steps, expected 0 to 1, got {config.training.warmup}"
        )
    return config


def value_of(config, key):
    section, leaf = key.split(".")
    return getattr(getattr(config, section), leaf)


def as_toml(config):
    """The resolved config of a run as TOML text; unset optional values are left out, and so is `plan`."""
    lines = []
    for section, values in asdict(config).items():
        if section == "plan":
            continue
        lines.append(f"[{section}]")
        lines += [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
        lines.append("")
    return "\n".join(lines)


def _toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = (
            value.replace("\\", "\\\\")
            .replace('"', '\\"')
            .replace("\n", "\\n")
            .replace("\t", "\\t")
        )
        return f'"{escaped}"'
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)


def _literal(value):
    """A value on the command line: TOML if it reads as TOML, else the text itself."""
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value


def _build(cls, table, prefix, where):
    known = {f.name: f for f in fields(cls)}
    values = {}
    for key, value in table.items():
        if key not in known:
            raise InputError(
                f"{where}: unknown key {prefix}{key}{_hint(key, known)}; expected one of {', '.join(known)}"
            )
        kind = known[key].type
        if is_dataclass(kind):
            if not isinstance(value, dict):
                raise InputError(f"{where}: {prefix}{key} must be a table, got {value!r}")
            values[key] = _build(kind, value, f"{prefix}{key}.", where)
        else:
            values[key] = _typed(value, kind, f"{prefix}{key}", where)
    return cls(**values)


def _typed(value, kind, key, where):
    if isinstance(kind, UnionType):
        kind = next(option for option in get_args(kind) if option is not NoneType)
    if get_origin(kind) is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return tuple(item.strip() for item in items if item.strip())
        raise InputError(f"{where}: {key} must be a list of strings, got {value!r}")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{where}: {key} must be of type {kind.__name__}, got {value!r}")
    return value


def _hint(word, known):
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
