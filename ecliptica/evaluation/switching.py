"""The likelihood metrics of instruction switching, from s(j, k, x) = log pi(y_{x,k} | I_j, x), response tokens only.

Every function takes the scores of one prompt and gives that prompt's value: prompts are what intervals resample.
"""

import numpy as np


def switch(s_JK):
    """Share of instruction pairs a < b with s_aa + s_bb - s_ab - s_ba > 0: length and response prior cancel. Chance 1/2."""
    own = np.diag(s_JK)[None, :] - s_JK  # [j, k]: what response k gains from its own instruction over j; exactly 0 if the instruction is ignored
    gain = (own + own.T)[np.triu_indices(len(s_JK), 1)]
    return float(np.mean((gain > 0) + 0.5 * (gain == 0)))


def strict_switch(s_JK):
    """Share of pairs a < b where each instruction prefers its own response outright: s_aa > s_ab and s_bb > s_ba."""
    wins = np.diag(s_JK)[:, None] > s_JK
    return float(np.mean((wins & wins.T)[np.triu_indices(len(s_JK), 1)]))


def strict_switch_null(s_JK, generator, permutations=100):
    """strict_switch with the responses' labels permuted: its chance level on these very scores."""
    return float(np.mean([strict_switch(s_JK[:, generator.permutation(len(s_JK))]) for _ in range(permutations)]))


def column_accuracy(s_JK):
    """Share of responses k whose most favourable instruction is their own: argmax_j s(j, k) = k. The same string: free of length. Chance 1/K."""
    return float(np.mean([_top_share(s_JK[:, k], k) for k in range(s_JK.shape[1])]))


def prompt_match(own_J, others_JN):
    """Share of instructions j under which log pi(y_{x,j} | I_j, x') over x and N distractors is highest at x. Chance 1/(N + 1)."""
    return float(np.mean([_top_share(np.concatenate([[own], others]), 0) for own, others in zip(own_J, others_JN)]))


def interaction(s_JK):
    """Scores with instruction and response means taken out: what depends on the pair alone (nats)."""
    return s_JK - s_JK.mean(0, keepdims=True) - s_JK.mean(1, keepdims=True) + s_JK.mean()


def _top_share(values, index):
    """1 if `index` is the maximum, 1/n if it shares it with n - 1 others, else 0: a blind model gets chance, not luck of the order."""
    top = values == values.max()
    return top[index] / top.sum()
