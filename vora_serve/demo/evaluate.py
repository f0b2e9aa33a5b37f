"""The demo's held-out questions, put to a model in this process; the server is asked elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model_plugin import VoRAForCausalLM, VoRAProcessor
from vora_serve.training.data import IGNORE, Sample, Tokeniser, collate
from vora_serve.world.suite import Item


@torch.no_grad()
def evaluate_items(
    model: VoRAForCausalLM, processor: VoRAProcessor, items: Sequence[Item], batch_size: int = 32
) -> list[bool]:
    """Which questions greedy decoding answers right.

    An answer is greedy decoding's exactly when every one of its tokens, and the token that ends it,
    is the most likely one after those before it; so one pass over question and answer decides.

    Args:
        model: on CPU, any dtype.
        processor: the model's.
        items: questions.
        batch_size: questions in one pass.
    """
    model.eval()
    tokenise = Tokeniser(processor, model.config.max_position_embeddings)
    right: list[bool] = []
    for start in range(0, len(items), batch_size):
        some = items[start : start + batch_size]
        batch = collate(
            [tokenise(_sample(item)) for item in some], tokenise.processor.tokenizer.pad_token_id
        )
        embeds = model.embed(batch.input_ids, batch.pixel_values, batch.image_grid_hw)
        logits = model.llm(inputs_embeds=embeds, attention_mask=batch.visible).logits[:, :-1]
        labels = batch.labels[:, 1:]
        hits = (logits.argmax(-1) == labels) | (labels == IGNORE)
        right += hits.all(-1).tolist()
    return right


def _sample(item: Item) -> Sample:
    return Sample(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": item.question}],
            },
            {"role": "assistant", "content": item.answer},
        ],
        [item.image],
    )
