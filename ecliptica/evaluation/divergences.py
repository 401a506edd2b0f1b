"""How far two distributions over the next token lie apart along one response: between two systems
(kl), or under two instructions (jsd)."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import softplus
from tqdm import tqdm

from ecliptica.data.packing import pack
from ecliptica.evaluation.questions import Answered, Question
from ecliptica.evaluation.scoring import (
    Loaded,
    check_finite,
    check_fits,
    context_ids,
    job_of,
    response_ids,
    score_stream,
)
from ecliptica.policy import adapter_off_reference, hidden, model_reference
from ecliptica.schema import Encoded

ROWS = 128  # of logits at a time


def kl_to_control(
    system: Loaded, questions: Sequence[Question], label: str, control: Loaded
) -> Iterator[Answered]:
    """Exact KL[system || control], summed over each response's tokens, and those."""
    # A system and its control that share one model differ by the adapter alone.
    if control.model is system.model:
        reference = adapter_off_reference(system.model)
    else:
        reference = model_reference(control.model)
    jobs = [job_of(system, [question]) for question in questions]
    for index, scored in score_stream(system, jobs, f"{label}, kl", reference):
        yield [(questions[index], {"kl": scored.kls[0], "tokens": scored.tokens[0]})]


def between_instructions(
    system: Loaded, questions: Sequence[Question], label: str
) -> Iterator[Answered]:
    """jsd of every question."""
    for question in tqdm(questions, desc=label, leave=False, disable=None):
        value = jsd_of(system, question)
        check_finite(value, f"{label}: {question}: jsd")
        yield [(question, {"jsd": value})]


def jsd_of(system: Loaded, question: Question) -> float:
    """Raises InputError if a context does not fit the window."""
    instructions = (question.instruction, question.other_instruction)
    contexts = [context_ids(system, question.prompt, text) for text in instructions]
    response = response_ids(system, question.response)
    for context in contexts:
        check_fits(system, str(question), context, [response])
    return jsd(system, contexts, response)


@torch.no_grad()
def jsd(system: Loaded, contexts: Sequence[Sequence[int]], response: Sequence[int]) -> float:
    """Mean over the response's positions of the JSD between the distributions under two contexts,
    nats. Logits in float32, ROWS positions at a time."""
    examples = [Encoded("", tuple(ids), (tuple(response),), (0.0,)) for ids in contexts]
    batch = pack(examples).to(system.model.head_weight_VD.device)
    rows_RD = hidden(system.model, batch)[batch.rows_R].float()
    head_VD = system.model.head_weight_VD.to(system.model.dtype).float()
    first_RD, second_RD = rows_RD.split(len(response))

    parts = []
    for first, second in zip(first_RD.split(ROWS), second_RD.split(ROWS)):
        parts.append(token_jsd(first @ head_VD.T, second @ head_VD.T))
    return float(torch.cat(parts).mean())


def token_jsd(first_RV: torch.Tensor, second_RV: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence of two rows of logits each, [R] float32 nats."""
    p_RV = first_RV.float().log_softmax(-1)
    q_RV = second_RV.float().log_softmax(-1)
    # log((p + q) / 2 / p) = softplus(d) - ln 2: the rounding of large logits cancels where the two
    # agree.
    d_RV = q_RV - p_RV
    of_p_RV = p_RV.exp() * (math.log(2) - softplus(d_RV))
    of_q_RV = q_RV.exp() * (math.log(2) - softplus(-d_RV))
    return 0.5 * (of_p_RV + of_q_RV).sum(-1).clamp_min(0)
