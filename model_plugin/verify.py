"""Merged and unmerged weights run side by side on a probe, a block of the LLM at a time.

A whole model need not fit into memory: hidden states go through the blocks one after another, and
each block's weights are read for it and let go. Computed in float32, whatever is stored.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from model_plugin.checkpoint import Checkpoint
from model_plugin.embedder import VoRAVisionEmbedding
from model_plugin.spans import block_ids, dense_mask
from model_plugin.tensors import TensorFiles
from vora_core.errors import CheckpointError
from vora_core.layout import LORA_A, LORA_B

#: Relative difference of logits (root of mean squares) that rounding to a dtype explains.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}
_TEXT, _GRID = 9, 4
_HEAD_ROWS = 8192


def probe_logits(checkpoint: Checkpoint, vocabulary: int) -> torch.Tensor:
    """Log-probabilities' logits of a fixed probe: text, an image, text.

    Args:
        checkpoint: merged, or with LoRA factors, which are then applied beside their weights.
        vocabulary: logits are computed of so many first tokens.

    Returns:
        float32 (tokens, vocabulary).
    """
    with checkpoint.weights as files:
        return _run(checkpoint, files, vocabulary)


def compare_probes(one: Checkpoint, two: Checkpoint) -> float:
    """How far two checkpoints of one LLM are apart on the probe.

    Returns:
        Root of the mean squared difference of logits, relative to the first one's.
    """
    vocabulary = min(one.config.vocab_size, 4 * _HEAD_ROWS)
    first, second = probe_logits(one, vocabulary), probe_logits(two, vocabulary)
    return float((first - second).pow(2).mean().sqrt() / first.pow(2).mean().sqrt())


def verify_merge(source: Checkpoint, merged: Path) -> float:
    """Compare a merged checkpoint with what it was merged from.

    Args:
        source: the pretraining checkpoint.
        merged: folder of the merged one.

    Returns:
        Root of the mean squared difference of logits, relative to the logits'.

    Raises:
        CheckpointError: they differ by more than rounding explains.
    """
    other = Checkpoint.open(merged)
    difference = compare_probes(source, other)
    name = next(n for n in other.files if n.endswith("q_proj.weight"))
    dtype = other.tensor(name, range(1)).dtype
    allowed = TOLERANCES.get(dtype, 0.2)
    if not difference <= allowed:
        raise CheckpointError(
            f"Merged and unmerged model disagree on a probe: their logits differ by "
            f"{difference:.2%}, more than rounding to {str(dtype).removeprefix('torch.')} explains "
            f"({allowed:.2%})."
        )
    return difference


@torch.no_grad()
def _run(checkpoint: Checkpoint, files: TensorFiles, vocabulary: int) -> torch.Tensor:
    config = checkpoint.config
    grid = _GRID * config.spatial_merge_size
    image_tokens = _GRID**2
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(grid**2, config.patch_dim, generator=random)
    ids = torch.randint(0, min(config.vocab_size, 1000), (_TEXT,), generator=random)
    embedder = VoRAVisionEmbedding(config)
    names = [n for n in checkpoint.files if n.startswith("vision_embedding.")]
    embedder.load_state_dict(
        {n.removeprefix("vision_embedding."): files.read(n).float() for n in names}
    )
    image = embedder(pixels, torch.tensor([[grid, grid]]))
    table = "llm.model.embed_tokens.weight"
    text = torch.cat([files.read(table, range(int(i), int(i) + 1)) for i in ids]).float()
    before = _TEXT // 2
    hidden = torch.cat([text[:before], image, text[before:]])[None]
    spans = [(before, before + image_tokens - 1)] if config.is_mm_prefix_lm else []
    marks = block_ids(hidden.shape[1], spans)
    mask = dense_mask(marks, marks)[None, None]

    inner = config.inner_config()
    inner.num_hidden_layers, inner.vocab_size, inner.dtype = 1, 8, torch.float32
    inner.pad_token_id = None
    if getattr(inner, "layer_types", None):
        inner.layer_types = inner.layer_types[:1]
    inner._attn_implementation = "sdpa"
    llm = AutoModelForCausalLM.from_config(inner).eval()
    block: nn.Module = llm.model.layers[0]
    positions = torch.arange(hidden.shape[1])[None]
    rotary = llm.model.rotary_emb(hidden, positions)
    for index in range(config.num_hidden_layers):
        handles = _load_block(block, files, f"llm.model.layers.{index}.", checkpoint)
        output = block(
            hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary
        )
        hidden = output[0] if isinstance(output, tuple) else output
        for handle in handles:
            handle.remove()
    norm = llm.model.norm
    norm.weight.copy_(files.read("llm.model.norm.weight").float())
    hidden = norm(hidden)[0]
    head = "llm.lm_head.weight" if "llm.lm_head.weight" in files else table
    starts = range(0, vocabulary, _HEAD_ROWS)
    pieces = [range(s, min(s + _HEAD_ROWS, vocabulary)) for s in starts]
    return torch.cat([hidden @ files.read(head, piece).float().T for piece in pieces], dim=1)


def _load_block(
    block: nn.Module, files: TensorFiles, prefix: str, checkpoint: Checkpoint
) -> list[torch.utils.hooks.RemovableHandle]:
    """Give the one block in memory another's weights; LoRA factors become hooks."""
    handles = []
    for name, parameter in block.named_parameters():
        parameter.copy_(files.read(prefix + name).float())
    for name, module in block.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        full = prefix + name
        extra = files.read(f"{full}.bias") if f"{full}.bias" in files else None
        factors: Mapping[str, torch.Tensor] | None = None
        if full + LORA_A in files:
            factors = {k: files.read(full + k).float() for k in (LORA_A, LORA_B)}
        own = dict(module.named_parameters(recurse=False))
        bias = extra.float() if extra is not None and "bias" not in own else None
        if bias is not None or factors is not None:
            handles.append(module.register_forward_hook(_adds(bias, factors)))
    return handles


def _adds(bias: torch.Tensor | None, factors: Mapping[str, torch.Tensor] | None):  # type: ignore[no-untyped-def]
    def hook(_: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        if factors is not None:
            inner = functional.linear(args[0], factors[LORA_A])
            output = output + functional.linear(inner, factors[LORA_B])
        return output if bias is None else output + bias

    return hook
