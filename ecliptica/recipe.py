"""The configuration of a training run: the sections of a recipe. docs/keys.md lists every key."""

from dataclasses import dataclass, replace
from typing import Any

from ecliptica import objectives, rewards
from ecliptica.config import (
    Variants,
    choice,
    not_negative,
    option,
    positive,
    section,
    seed,
    share,
    share_below_one,
)
from ecliptica.data import formats
from ecliptica.data.settings import DataConfig
from ecliptica.objectives import cita
from ecliptica.online.settings import RolloutConfig
from ecliptica.rewards import length
from model.errors import InputError


@dataclass(frozen=True)
class ModelConfig:
    """The section `model`."""

    path: str = option("", "directory of the base model in Hugging Face layout")
    dtype: str = choice(
        "bfloat16",
        ("float32", "bfloat16"),
        "what it computes in; trained parameters are stored in float32",
    )
    adapter: str = option(
        "", "a LoRA adapter to start from: it is part of the policy's start and of the reference"
    )


@dataclass(frozen=True)
class LoraConfig:
    """The section `lora`."""

    rank: int = not_negative(8, "0: full fine-tuning")
    alpha: float = positive(16.0, "the update is scaled by alpha / rank")
    targets: tuple[str, ...] = option(("q_proj", "v_proj"), "names of the layers that get one")
    dropout: float = share_below_one(0.0, "of the adapter's input, in training")


@dataclass(frozen=True)
class TrainingConfig:
    """The section `training`."""

    epochs: int = positive(3, "passes over the data")
    max_steps: int = not_negative(0, "optimizer steps; 0: as many as the epochs give")
    batch_preferences: int = positive(8, "per optimizer step, over all ranks")
    micro_preferences: int = positive(8, "per forward and backward")
    lr: float = positive(2e-5, "peak learning rate")
    weight_decay: float = not_negative(0.0, "AdamW's")
    warmup: float = share(0.1, "share of the steps")
    schedule: str = choice("cosine", ("cosine", "constant"), "of the learning rate after warm-up")
    clip_norm: float = positive(1.0, "largest norm of the gradient")
    seed: int = seed(0, "of the order, the adapters' start and dropout")
    reference: str = choice(
        "auto",
        ("auto", "adapter-off", "cache", "model"),
        "auto: cache for several epochs within its budget, else adapter-off (LoRA) or model",
    )
    cache_budget_gib: float = not_negative(0.0, "disk that reference=auto may give the cache")
    cache_dir: str = option("", "empty: run.dir/cache; runs of one model and data can share one")
    replicas: int = positive(
        1, "HSDP: the model is sharded over processes / replicas, and repeated"
    )
    activation_checkpointing: str = choice(
        "off",
        ("off", "selective", "full"),
        "selective: keep products and attention, make the rest again; full: keep block inputs",
    )
    compile: bool = option(False, "torch.compile of each block")
    checkpoint_every: int = not_negative(100, "steps; 0: only when a signal stops the run")
    keep_checkpoints: int = positive(2, "the newest so many stay")
    stall_seconds: float = positive(60.0, "a rank that others wait for so long is named")
    eval_every: int = not_negative(0, "steps between evaluations of data.eval; 0: never")
    sample_every: int = not_negative(0, "steps between sampled answers; 0: never")
    device: str = choice("auto", ("auto", "cpu", "cuda"), "auto: cuda where there is one")


@dataclass(frozen=True)
class SamplesConfig:
    """The section `samples`: fixed prompts, each answered under every instruction at
    training.sample_every, so that switching is seen to happen."""

    prompts: tuple[str, ...] = option(
        ("Is remote work beneficial for long-term productivity?",), "user prompts"
    )
    instructions: tuple[str, ...] = option(
        (
            "Answer as a careful adviser who puts safety first.",
            "Answer in a playful, poetic way.",
        ),
        "alignment instructions",
    )
    max_new_tokens: int = positive(48, "of each answer")


@dataclass(frozen=True)
class RunConfig:
    """The section `run`."""

    dir: str = option("", "directory of the run; empty: runs/ and the recipe's name")


@dataclass(frozen=True)
class PlanConfig:
    """The section `plan`: for --plan alone, no part of a run."""

    gpus: int = positive(8, "how many")
    gpu: str = option("h100-80gb", "their kind: a name in GPUS of planning/gpus.py, or cpu")
    gpus_per_node: int = positive(8, "in one machine")
    mfu: float = positive(0.4, "of the dense bfloat16 peak; an assumption, measure yours")
    shape: str = option("", "of a model that is not at model.path yet: llama3-8b, llama3-70b")
    tokens: int = not_negative(
        0, "of a micro-batch; 0: the largest of data.train, or the worst that fits max_tokens"
    )


@dataclass(frozen=True)
class Config:
    """A recipe. Which keys `objective` and `data` have is the objective's and the format's word."""

    model: ModelConfig = section(ModelConfig)
    data: DataConfig = section(DataConfig, Variants("format", formats.configs))
    objective: Any = section(cita.Config, Variants("name", objectives.configs))
    rollout: RolloutConfig = section(RolloutConfig)
    reward: Any = section(length.Config, Variants("name", rewards.configs))
    lora: LoraConfig = section(LoraConfig)
    training: TrainingConfig = section(TrainingConfig)
    samples: SamplesConfig = section(SamplesConfig)
    run: RunConfig = section(RunConfig)
    plan: PlanConfig = section(PlanConfig)

    def finish(self, name: str) -> "Config":
        """run.dir of a recipe that names none: runs/ and the recipe's name."""
        if self.run.dir:
            return self
        return replace(self, run=replace(self.run, dir=f"runs/{name or 'unnamed'}"))

    def check(self) -> None:
        """What the sections' own rules cannot see: one key against another."""
        if not self.model.path:
            raise InputError("model.path: not set; give it in the recipe or as model.path=PATH")
        if objectives.learns_from_rollouts(self.objective):
            self._check_rollouts()
        elif not self.data.train and self.data.format != "isd":
            raise InputError("data.train: not set; give it in the recipe or as data.train=PATH")
        if self.lora.rank == 0 and self.training.reference == "adapter-off":
            raise InputError(
                "training.reference: adapter-off needs LoRA, but lora.rank is 0; "
                "use training.reference=model"
            )
        if self.lora.rank > 0 and not self.lora.targets:
            raise InputError("lora.targets: empty; expected layer names such as q_proj, v_proj")

    def _check_rollouts(self) -> None:
        """What an objective that learns from rollouts asks of the other sections."""
        name = self.objective.name
        if not self.rollout.prompts:
            raise InputError(
                f"rollout.prompts: not set, and {name} learns from responses to them; give JSON "
                'lines of {"prompt"} in the recipe or as rollout.prompts=PATH'
            )
        least = objectives.get(self.objective).LEAST_RESPONSES
        if self.rollout.responses < least:
            raise InputError(
                f"rollout.responses: {name} compares the responses to a prompt; expected at least "
                f"{least}, got {self.rollout.responses}"
            )
        if self.lora.dropout:
            raise InputError(
                f"lora.dropout: expected 0 with {name}, got {self.lora.dropout}: the policy that "
                "learns would be another function than the one that sampled"
            )
        if self.training.reference == "cache":
            raise InputError(
                f"training.reference: no cache holds the responses that {name} has yet to sample; "
                "use adapter-off, model or auto"
            )
