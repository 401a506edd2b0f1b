"""DPO beside TRL's own trainer."""

import math

import pytest
import torch

from ecliptica.data.loader import micro_batches
from ecliptica.data.templates import as_text, get_template, render_context, response_pieces
from ecliptica.objectives.contract import Step
from ecliptica.training import loop
from model.lora import load_adapter
from model.weights import load_model
from tests.training.runs import examples_of, learner_of

COUNT = 4  # preferences of the batch


def rendered(preferences, tokenizer):
    """The preferences as texts, in the template that ours are in."""
    template = get_template("chatml", tokenizer)
    for preference in preferences:
        context = render_context(template, preference["prompt"], preference["instruction"])
        sides = {
            side: as_text(response_pieces(template, preference[side]))
            for side in ("chosen", "rejected")
        }
        yield {"prompt": as_text(context)} | sides


def trl_numbers(base, adapter, data, out):
    """What TRL's trainer logs of one step without learning."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(base / "tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    policy = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    policy = PeftModel.from_pretrained(policy, adapter).merge_and_unload().requires_grad_(True)
    options = DPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=COUNT,
        max_steps=1,
        learning_rate=0.0,
        beta=0.1,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=options,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )
    trainer.train()
    return next(entry for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.peer
def test_dpo_equals_trl_on_the_same_batch(recipe, tmp_path, tiny, tokenizer, preferences):
    """Float32, one batch, a LoRA adapter that has moved: loss, log-probs and margins."""
    adapter = loop.train(recipe("training.max_steps=6"))
    config = recipe("objective.name=dpo")
    learner = learner_of(config)
    learner.policy.load_state_dict(
        load_adapter(load_model(tiny), adapter).state_dict(), strict=True
    )
    batch = micro_batches(examples_of(config, tokenizer)[:COUNT], COUNT)[0]
    terms = learner.terms(batch, Step(0, 1))

    data = list(rendered(preferences[:COUNT], tokenizer))
    logged = trl_numbers(tiny, adapter, data, tmp_path / "trl")
    assert abs(logged["loss"] - math.log(2)) > 0.05, "the adapter has not moved"
    assert terms.loss.item() / COUNT == pytest.approx(logged["loss"], rel=1e-3)
    for name, near in (("logps/chosen", 1e-4), ("rewards/margins", 1e-3)):
        ours = terms.metrics[name].item() / COUNT
        assert ours == pytest.approx(logged[name], rel=near), name
