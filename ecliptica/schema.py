"""The shared types, and the one legend of shape letters.

T tokens of a packed batch    R response rows (hidden rows that predict response tokens)
S sequences (responses)       P preferences    D hidden width    V vocabulary    H heads
K kv heads                    E head width     B documents       L longest
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True)
class Preference:
    """(I, X, Y+, Y-): `responses` best first, so chosen is 0 and rejected is 1.

    It holds relative to the instruction.
    """

    id: str  # "file:line", or the id that the line carries
    prompt: str
    responses: tuple[str, ...]
    instruction: str | None = None
    turns: tuple[tuple[str, str], ...] = ()  # earlier (user, assistant) turns of the conversation
    scores: tuple[float, ...] = (1.0, 0.0)  # one per response; rrhf alone reads more than the order
    rationale: str | None = None


@dataclass(frozen=True)
class Encoded:
    """A preference as token ids, cut to fit: what packing takes."""

    id: str
    context: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...] = (1.0, 0.0)
    # Of a labelled response: tokens that its context and another's response may have together.
    # 0: it is packed without a mismatched one.
    window: int = 0
    # (what leads from the context to it, the reason of the rejection), where an objective reads it.
    rationale: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def tokens(self) -> int:
        return len(self.context) + sum(map(len, (*self.responses, *(self.rationale or ()))))

    @property
    def hidden_rows(self) -> int:
        """Distinct hidden rows that predict its responses: the context's last, which the responses
        share, and all but the last of each response; a rationale has all of its own."""
        own = len(self.rationale[1]) if self.rationale else 0
        return 1 + sum(len(response) - 1 for response in self.responses) + own

    @property
    def key(self) -> str:
        """What the reference's cache knows it by: a digest of its token ids, nothing else."""
        ids = (self.context, self.responses)
        if self.rationale:
            ids = (*ids, self.rationale)
        return hashlib.sha256(repr(ids).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Sampled:
    """What is known of each response token of a rollout before it is learnt from; no gradient."""

    logp_R: torch.Tensor  # of the policy that sampled it
    ref_logp_R: torch.Tensor
    advantage_R: torch.Tensor
    values_R: torch.Tensor | None = None  # the critic's, when it was sampled
    returns_R: torch.Tensor | None = None  # what the critic is to learn

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Sampled":
        changed = {k: None if v is None else change(v) for k, v in vars(self).items()}
        return Sampled(**changed)

    def part(self, first: int, end: int) -> "Sampled":
        """Of the tokens from `first` up to `end`."""
        return self.each(lambda x_R: x_R[first:end])

    def to(self, device: torch.device | str) -> "Sampled":
        return self.each(lambda x_R: x_R.to(device))

    @staticmethod
    def joined(parts: Sequence["Sampled"]) -> "Sampled":
        """Of several stretches of tokens, one behind the other."""
        columns = {}
        for name, value in vars(parts[0]).items():
            if value is not None:
                columns[name] = torch.cat([getattr(part, name) for part in parts])
        return Sampled(**columns)


@dataclass(frozen=True)
class PackedBatch:
    """Preferences in one row: `prompt | response 1 | response 2 | ...`, the prompt once.

    Positions of every response restart after the prompt. What all prompts begin with may stand
    before them once: the head.
    """

    tokens_T: torch.Tensor
    positions_T: torch.Tensor
    document_T: torch.Tensor  # which preference; -1 for the head
    branch_T: torch.Tensor  # 0 head and prompts, k for response k
    rows_R: torch.Tensor  # the hidden row that predicts each response token
    targets_R: torch.Tensor
    segments_R: torch.Tensor  # which sequence, ascending
    owner_S: torch.Tensor  # which preference each sequence answers
    scores_S: torch.Tensor
    # Of the preferences; none in a filler, which a rank without work of its own runs and nobody
    # counts.
    ids: tuple[str, ...]
    keys: tuple[str, ...]  # Encoded.key of each
    # The same contexts, each with the response of its neighbour in the step, where the objective
    # needs them (kto). A pair's score is 1, or 0 if the step has no other context than its own.
    mismatched: "PackedBatch | None" = None
    sampled: Sampled | None = None  # of a rollout: what is known of its response tokens
    aside_S: torch.Tensor | None = None  # which sequences are rationales; None: none is

    @property
    def num_sequences(self) -> int:
        return self.owner_S.numel()

    @property
    def last_S(self) -> torch.Tensor:
        """The row of each response's last token, its end of turn included; ascending."""
        # A branch ends where another begins, of this preference or of the next.
        ends_T = torch.ones_like(self.branch_T, dtype=torch.bool)
        ends_T[:-1] = (self.branch_T[1:] != self.branch_T[:-1]) | (
            self.document_T[1:] != self.document_T[:-1]
        )
        return (ends_T & (self.branch_T > 0)).nonzero()[:, 0]

    def to(self, device: torch.device | str) -> "PackedBatch":
        moved = {k: v.to(device) for k, v in vars(self).items() if hasattr(v, "to")}
        return replace(self, **moved)


@dataclass(frozen=True)
class Work:
    """What a batch source gives one rank to do in a step."""

    updates: list[list[PackedBatch]]  # the micro-batches of each optimizer update
    metrics: dict[str, float] = field(default_factory=dict)  # of all ranks; logged with the step
    answers: list[dict[str, object]] = field(default_factory=list)  # a few, to be read
    # Called with the metrics of the first update before it is made; may raise.
    check: Callable[[dict[str, float]], None] | None = None

    @property
    def batches(self) -> list[PackedBatch]:
        """Of all updates, one behind the other."""
        return [batch for batches in self.updates for batch in batches]


@dataclass(frozen=True)
class Sequences:
    """Numbers per sequence. The sequences of a preference are adjacent, best first."""

    logp_S: torch.Tensor | None  # log pi(Y | I, X), summed over the response's tokens
    tokens_S: torch.Tensor
    owner_S: torch.Tensor
    scores_S: torch.Tensor
    kl_S: torch.Tensor | None = None  # KL[policy || reference], summed over the positions
    ref_logp_S: torch.Tensor | None = None
    rewards_S: torch.Tensor | None = None
    aside_S: torch.Tensor | None = None  # which are rationales, behind the responses; None: none

    @property
    def chosen_P(self) -> torch.Tensor:
        """Index of each preference's best response."""
        first = torch.ones_like(self.owner_S, dtype=torch.bool)
        first[1:] = self.owner_S[1:] != self.owner_S[:-1]
        return first.nonzero()[:, 0]

    @property
    def rejected_P(self) -> torch.Tensor:
        """Index of each preference's second response, where each has at least two."""
        return self.chosen_P + 1


@dataclass(frozen=True)
class Rows:
    """What objectives see: numbers per response token, never a model."""

    logp_R: torch.Tensor | None  # log pi(y_t | I, X, y_<t); None where rewards alone are asked for
    segments_R: torch.Tensor  # which sequence, ascending
    owner_S: torch.Tensor  # which preference each sequence answers
    scores_S: torch.Tensor
    kl_R: torch.Tensor | None = None  # KL[policy || reference] over the vocabulary; exact
    ref_logp_R: torch.Tensor | None = None  # the reference's logp_R, no gradient
    values_R: torch.Tensor | None = None  # the critic's, of the state before each response token
    rewards_S: torch.Tensor | None = None  # a reward model's, of each whole response
    sampled: Sampled | None = None  # of a rollout
    aside_S: torch.Tensor | None = None  # which sequences are rationales; None: none is

    @property
    def tokens_S(self) -> torch.Tensor:
        """Tokens of each sequence; int64."""
        counts_S = torch.zeros_like(self.owner_S)
        return counts_S.index_add(0, self.segments_R, torch.ones_like(self.segments_R))

    def per_sequence(self, x_R: torch.Tensor) -> torch.Tensor:
        """[S]: the sum of x_R over each sequence's tokens, in their order: the same bits every
        run, on every device."""
        return torch.segment_reduce(x_R, "sum", lengths=self.tokens_S, initial=0, unsafe=True)

    def sequences(self) -> Sequences:
        """The same numbers summed over each sequence."""

        def summed(x_R: torch.Tensor | None) -> torch.Tensor | None:
            return None if x_R is None else self.per_sequence(x_R)

        return Sequences(
            logp_S=summed(self.logp_R),
            tokens_S=self.tokens_S,
            owner_S=self.owner_S,
            scores_S=self.scores_S,
            kl_S=summed(self.kl_R),
            ref_logp_S=summed(self.ref_logp_R),
            rewards_S=self.rewards_S,
            aside_S=self.aside_S,
        )


@dataclass
class Counts:
    """What truncation and bad lines cost: kept in the log."""

    kept: int = 0
    prompts_cut: int = 0
    responses_cut: int = 0
    dropped: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def line(self) -> str:
        return (
            f"{self.kept} preferences, {self.prompts_cut} prompts cut, "
            f"{self.responses_cut} responses cut, {len(self.dropped)} dropped, "
            f"{len(self.skipped)} bad lines skipped"
        )
