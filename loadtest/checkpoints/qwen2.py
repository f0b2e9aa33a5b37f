"""The LLM that VoRA and every baseline share: a Qwen2 decoder's keys and tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loadtest.checkpoints.tokenizer import special_id
from loadtest.checkpoints.writer import Dims
from loadtest.shapes import LLMShape


def qwen2_keys(llm: LLMShape) -> dict[str, Any]:
    """The keys of its ``config.json``."""
    return {
        "attention_dropout": 0.0,
        "bos_token_id": special_id(llm.vocab, "<|endoftext|>"),
        "eos_token_id": special_id(llm.vocab, "<|im_end|>"),
        "hidden_act": "silu",
        "hidden_size": llm.hidden,
        "initializer_range": 0.02,
        "intermediate_size": llm.intermediate,
        "max_position_embeddings": llm.max_positions,
        "max_window_layers": llm.layers,
        "num_attention_heads": llm.heads,
        "num_hidden_layers": llm.layers,
        "num_key_value_heads": llm.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": llm.tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": llm.vocab,
    }


def qwen2_shapes(llm: LLMShape, body: str, head: str) -> Iterator[tuple[str, Dims]]:
    """Name and dimensions of its tensors.

    Args:
        llm: the shape.
        body: prefix of the blocks, such as ``llm.model.``.
        head: prefix of ``lm_head.weight``, written unless embeddings are tied.
    """
    hidden, wide = llm.hidden, llm.intermediate
    keys = hidden // llm.heads * llm.kv_heads
    yield f"{body}embed_tokens.weight", (llm.vocab, hidden)
    for layer in range(llm.layers):
        at = f"{body}layers.{layer}."
        yield f"{at}input_layernorm.weight", (hidden,)
        yield f"{at}post_attention_layernorm.weight", (hidden,)
        for name, rows in (("q", hidden), ("k", keys), ("v", keys)):
            yield f"{at}self_attn.{name}_proj.weight", (rows, hidden)
            yield f"{at}self_attn.{name}_proj.bias", (rows,)
        yield f"{at}self_attn.o_proj.weight", (hidden, hidden)
        yield f"{at}mlp.gate_proj.weight", (wide, hidden)
        yield f"{at}mlp.up_proj.weight", (wide, hidden)
        yield f"{at}mlp.down_proj.weight", (hidden, wide)
    yield f"{body}norm.weight", (hidden,)
    if not llm.tied:
        yield f"{head}lm_head.weight", (llm.vocab, hidden)
