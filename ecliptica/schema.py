"""The shared types, and the one legend of shape letters.

T tokens of a packed batch    R response rows (hidden rows that predict response tokens)    S sequences (responses)
P preferences    D hidden width    V vocabulary    H heads    K kv heads    E head width    B documents    L longest
"""

import hashlib
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Preference:
    """(I, X, Y+, Y-): `responses` best first, so chosen is 0 and rejected is 1. It holds relative to the instruction."""

    id: str  # "file:line", or the id that the line carries
    prompt: str
    responses: tuple[str, ...]
    instruction: str | None = None
    turns: tuple[tuple[str, str], ...] = ()  # earlier (user, assistant) turns of the conversation
    scores: tuple[float, ...] = (
        1.0,
        0.0,
    )  # one per response; only rrhf reads more than their order
    rationale: str | None = None


@dataclass(frozen=True)
class Encoded:
    """A preference as token ids, cut to fit: what packing takes."""

    id: str
    context: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...] = (1.0, 0.0)

    @property
    def tokens(self):
        return len(self.context) + sum(map(len, self.responses))

    @property
    def key(self):
        """What the reference's cache knows it by: a digest of its token ids, nothing else."""
        return hashlib.sha256(repr((self.context, self.responses)).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class PackedBatch:
    """Preferences in one row: `prompt | response 1 | response 2 | ...`, prompt once, positions of every response restarting after it."""

    tokens_T: torch.Tensor
    positions_T: torch.Tensor
    document_T: torch.Tensor  # which preference
    branch_T: torch.Tensor  # 0 prompt, k for response k
    rows_R: torch.Tensor  # the hidden row that predicts each response token
    targets_R: torch.Tensor
    segments_R: torch.Tensor  # which sequence
    owner_S: torch.Tensor  # which preference each sequence answers
    scores_S: torch.Tensor
    ids: tuple[
        str, ...
    ]  # of the preferences; none in a filler, which a rank without work of its own runs and nobody counts
    keys: tuple[str, ...]  # Encoded.key of each

    @property
    def num_sequences(self):
        return self.owner_S.numel()

    def to(self, device):
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return PackedBatch(**moved, ids=self.ids, keys=self.keys)


@dataclass(frozen=True)
class SequenceStats:
    """What objectives see: numbers per sequence, never a model. Sequences of a preference are adjacent, best first."""

    logp_S: torch.Tensor  # log pi(Y | I, X), summed over the response's tokens
    tokens_S: torch.Tensor
    owner_S: torch.Tensor
    scores_S: torch.Tensor
    kl_S: torch.Tensor | None = None  # KL[policy || reference] summed over the response's positions
    ref_logp_S: torch.Tensor | None = None

    @property
    def chosen_P(self):
        """Index of each preference's best response."""
        first = torch.ones_like(self.owner_S, dtype=torch.bool)
        first[1:] = self.owner_S[1:] != self.owner_S[:-1]
        return first.nonzero()[:, 0]

    @property
    def rejected_P(self):
        """Index of each preference's second response. Only for batches with at least two a preference."""
        return self.chosen_P + 1


@dataclass
class Counts:
    """What truncation and bad lines cost: kept in the log."""

    kept: int = 0
    prompts_cut: int = 0
    responses_cut: int = 0
    dropped: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def line(self):
        return (
            f"{self.kept} preferences, {self.prompts_cut} prompts cut, {self.responses_cut} responses cut, "
            f"{len(self.dropped)} dropped, {len(self.skipped)} bad lines skipped"
        )
