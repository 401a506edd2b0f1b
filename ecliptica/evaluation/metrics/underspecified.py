"""Underspecified: the share of the joint metric that a half-said instruction keeps of the full one (ratio of means, null 1; and difference, null 0),
and its distance to the behaviour without instruction: mean over instructions j and responses k of

    |log pi(y_{x,k} | I_j, x) - log pi(y_{x,k} | x)| / tokens of y_{x,k}        nats a token

over the same of the full instruction: 1, it moves the model as far as the full one; 0, as if nothing were said. Absolute is right here: how far
the two behaviours lie apart has no direction, and signed changes of the ten responses would cancel. It rewards nothing: whether the way
is right is what joint says. A model that ignores instructions has distance 0 under all and no ratio.

Mind that two systems at chance keep a share of 1: read it beside joint under the full instruction.
"""

import numpy as np


def distance(said_JK, unsaid_K, tokens_K):
    """One prompt: log-probs under the instructions, without any, and tokens of the responses. Nats a token, >= 0."""
    return float(np.mean(np.abs(np.asarray(said_JK) - unsaid_K) / tokens_K))
