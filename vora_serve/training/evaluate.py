"""Held-out answers in one forward pass: is each the one that greedy decoding would give?"""

import torch

from model_plugin import VoRAForCausalLM
from vora_serve.training.attention import Rule, attention_for
from vora_serve.training.data import IGNORE, Batch


@torch.no_grad()
def right_answers(model: VoRAForCausalLM, batch: Batch, rule: Rule) -> list[bool]:
    """Which answers greedy decoding gets right, token for token.

    An answer is greedy decoding's exactly when every one of its tokens, and the token that ends it,
    is the likeliest after those before it; so one pass over questions and answers decides. Later
    answers of a conversation are evaluated after the right earlier ones.

    Args:
        model: in evaluation mode.
        batch: questions and answers.
        rule: the attention rule.

    Returns:
        One value an answer, row by row.
    """
    has_images = len(batch.image_grid_hw) > 0
    embeds = model.embed(
        batch.input_ids,
        batch.pixel_values if has_images else None,
        batch.image_grid_hw if has_images else None,
    )
    hidden = model.llm.model(
        inputs_embeds=embeds,
        position_ids=batch.position_ids,
        use_cache=False,
        **attention_for(batch, rule, model.llm.config._attn_implementation),
    ).last_hidden_state
    labels = batch.labels[:, 1:]
    targets = labels != IGNORE
    hits = torch.zeros_like(targets)
    hits[targets] = model.llm.lm_head(hidden[:, :-1][targets]).argmax(-1) == labels[targets]
    right: list[bool] = []
    for row_targets, row_hits in zip(targets.tolist(), hits.tolist(), strict=True):
        inside = False
        for target, hit in zip(row_targets, row_hits, strict=True):
            if target and not inside:
                right.append(True)
            if target:
                right[-1] = right[-1] and hit
            inside = target
    return right
