"""Learning from the policy's own responses: prompts in, sampled and judged responses out, as the
packed batches that the training loop takes from any source."""
