"""adapter_config.json of a LoRA adapter in PEFT's layout: what is read, what is refused by name."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.files import read_json

FILE = "adapter_config.json"

# Starts that leave the base as it is. The others (PiSSA, OLoRA, LoftQ, CorDA, ...) train against
# weights that differ from the base they name, or set up a variant of the formula.
PLAIN_STARTS = (True, False, None, "gaussian")

# Keys that are read below.
READ = {
    "r",
    "lora_alpha",
    "lora_dropout",
    "init_lora_weights",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
}

# Keys that describe, or that mean something only together with another that is refused.
DESCRIPTIVE = {
    "peft_type",
    "peft_version",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "runtime_config",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "qalora_group_size",
}


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter computes: y = W x + (alpha / rank) B A x on the layers that it names."""

    rank: int
    alpha: float
    dropout: float
    targets: str | tuple[str, ...]  # a pattern of the whole name, or ends of names
    excluded: str | tuple[str, ...] = ()
    layers: tuple[int, ...] = ()  # none: all of them
    layers_pattern: tuple[str, ...] = ()
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None

    def rank_of(self, layer: str) -> int:
        """The rank on one layer, by its name in the Hugging Face tree."""
        return _by_pattern(self.rank_pattern, layer, self.rank)

    def alpha_of(self, layer: str) -> float:
        """The alpha on one layer."""
        return _by_pattern(self.alpha_pattern, layer, self.alpha)

    def scale_of(self, layer: str) -> float:
        """What B A is multiplied by on one layer."""
        return self.alpha_of(layer) / self.rank_of(layer)

    @property
    def on_all_linear(self) -> bool:
        """Whether it is on every Linear but the head, by PEFT's short word for that."""
        return isinstance(self.targets, str) and self.targets.lower() == "all-linear"

    def adapts(self, layer: str) -> bool:
        """Whether the adapter is on this Linear, by PEFT's rules."""
        if _named(self.excluded, layer):
            return False
        if self.on_all_linear:
            return not layer.endswith("lm_head")
        if not _named(self.targets, layer):
            return False
        return not self.layers or self._number_of(layer) in self.layers

    def _number_of(self, layer: str) -> int | None:
        """The number of the block that a layer is in; None for one that is in none."""
        for pattern in self.layers_pattern or (r"[^.]*",):
            match = re.match(_numbered(pattern), layer)
            if match and match["number"]:
                return int(match["number"])
        return None


def _by_pattern(patterns: dict[str, Any] | None, layer: str, default: Any) -> Any:
    """The value of the first pattern that the end of a layer's name matches."""
    for pattern, value in (patterns or {}).items():
        if re.match(_ending(pattern), layer):
            return value
    return default


def _ending(pattern: str) -> str:
    """The expression for a name that ends as `pattern` says."""
    return rf"(.*\.)?({pattern})$"


def _numbered(pattern: str) -> str:
    """The expression for the first number that stands after what `pattern` says."""
    return rf"(?:^|.*?\.){pattern}\.(?P<number>\d+)\."


def _named(names: str | Iterable[str], layer: str) -> bool:
    """Whether a pattern matches all of a layer's name, or one of a list is its end."""
    if isinstance(names, str):
        return bool(re.fullmatch(names, layer))
    return any(layer == name or layer.endswith(f".{name}") for name in names)


def read_adapter_config(adapter_dir: str | Path) -> AdapterConfig:
    """adapter_config.json of a directory, ours or PEFT's.

    Raises InputError for what is no LoRA, for an unknown key that says something, and for values
    that are none.
    """
    path = Path(adapter_dir) / FILE
    raw = read_json(path)
    if raw.get("peft_type") != "LORA":
        raise InputError(
            f"{path}: peft_type is {raw.get('peft_type')!r:.80}; only LORA adapters are supported"
        )
    _check_formula(raw, path)
    config = AdapterConfig(
        rank=_rank(raw.get("r"), "r", path),
        alpha=_alpha(raw.get("lora_alpha"), "lora_alpha", path),
        dropout=_dropout(raw, path),
        targets=_names(raw, "target_modules", path),
        excluded=_names(raw, "exclude_modules", path),
        layers=_layers(raw, path),
        layers_pattern=_list_of_names(raw, "layers_pattern", path),
        rank_pattern=_pattern(raw, "rank_pattern", path, _rank),
        alpha_pattern=_pattern(raw, "alpha_pattern", path, _alpha),
    )
    _check_patterns(config, path)
    return config


def _check_formula(raw: dict[str, Any], path: Path) -> None:
    """Raises InputError, by name, for whatever changes the base or the formula."""
    start = raw.get("init_lora_weights", True)
    plain = start.lower() if isinstance(start, str) else start
    if not any(plain is known or plain == known == "gaussian" for known in PLAIN_STARTS):
        raise InputError(
            f"{path}: init_lora_weights = {start!r:.80}: this start changes the base weights or "
            "the formula; convert the adapter to plain LoRA (save_pretrained with "
            "path_initial_model_for_weight_conversion), or merge it into the model"
        )
    for key, value in raw.items():
        if key in READ or key in DESCRIPTIVE:
            continue
        says_nothing = value is None or value is False or value in ("", [], {})
        if says_nothing or (key == "bias" and value == "none"):
            continue
        raise InputError(
            f"{path}: {key} = {value!r:.80} is not supported; only plain LoRA is: "
            "W x + (lora_alpha / r) B A x"
        )


def _rank(value: Any, key: str, path: Path) -> int:
    if type(value) is not int or not 1 <= value <= 1 << 20:
        raise InputError(f"{path}: {key}: expected a rank, an integer from 1, got {value!r:.80}")
    return value


def _alpha(value: Any, key: str, path: Path) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise InputError(f"{path}: {key}: expected a number above 0, got {value!r:.80}")
    return value


def _dropout(raw: dict[str, Any], path: Path) -> float:
    value = raw.get("lora_dropout")
    if value is None:
        return 0.0
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise InputError(f"{path}: lora_dropout: expected a number in [0, 1), got {value!r:.80}")
    return float(value)


def _names(raw: dict[str, Any], key: str, path: Path) -> str | tuple[str, ...]:
    """One pattern, or a list of names."""
    value = raw.get(key)
    if isinstance(value, str):
        return value
    return _list_of_names(raw, key, path)


def _list_of_names(raw: dict[str, Any], key: str, path: Path) -> tuple[str, ...]:
    value = raw.get(key)
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{path}: {key}: expected names, got {value!r:.80}")
    return tuple(value)


def _layers(raw: dict[str, Any], path: Path) -> tuple[int, ...]:
    """layers_to_transform: one number or a list; absent or empty: all layers."""
    value = raw.get("layers_to_transform")
    if value is None:
        return ()
    numbers = value if isinstance(value, list) else [value]
    if not all(type(number) is int for number in numbers):
        raise InputError(f"{path}: layers_to_transform: expected layer numbers, got {value!r:.80}")
    return tuple(numbers)


def _pattern(raw: dict[str, Any], key: str, path: Path, check: Any) -> dict[str, Any] | None:
    """{pattern of a layer's name: value that passes `check`}."""
    value = raw.get(key)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InputError(f"{path}: {key}: expected an object, got {value!r:.80}")
    return {name: check(number, f"{key}.{name:.80}", path) for name, number in value.items()}


def _check_patterns(config: AdapterConfig, path: Path) -> None:
    """Patterns are regular expressions: raises InputError for one that is none."""
    wholes = [names for names in (config.targets, config.excluded) if isinstance(names, str)]
    ends = [*(config.rank_pattern or ()), *(config.alpha_pattern or ())]
    expressions = {pattern: pattern for pattern in wholes}
    expressions |= {pattern: _ending(pattern) for pattern in ends}
    expressions |= {pattern: _numbered(pattern) for pattern in config.layers_pattern}
    for pattern, expression in expressions.items():
        try:
            re.compile(expression)
        except (re.error, OverflowError, RecursionError) as error:
            raise InputError(
                f"{path}: {pattern!r:.80} is not a pattern of layer names ({error})"
            ) from error
