"""Names and shapes of a VoRA checkpoint's tensors, by arithmetic on its configuration.

The released layout: ``llm.*`` is the LLM, ``vision_embedding.*`` the patch embedder,
``*.lora_A.weight`` and ``*.lora_B.weight`` are LoRA factors beside their base weight, and
``aux_vision.*`` are the distillation heads and the teacher of a pretraining checkpoint, which
serving does not need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from vora_core.errors import CheckpointError, ConfigError

Part = Literal["llm", "vision", "lora", "aux", "unknown"]
Shape = tuple[int, ...]

LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"

#: LLM architectures that VoRA runs without new code: pre-norm decoders with separate
#: q/k/v/o projections and a gated MLP, whose blocks are ``model.layers.N``.
SUPPORTED_LLMS = ("qwen2", "llama", "qwen3")
#: Linear layers of one decoder block, in the order in which the released code names them.
LINEAR_LAYERS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.up_proj",
    "mlp.gate_proj",
    "mlp.down_proj",
)


def part_of(name: str) -> Part:
    """Which part of a checkpoint a tensor belongs to."""
    if name.startswith("aux_vision."):
        return "aux"
    if name.endswith((LORA_A, LORA_B)):
        return "lora"
    if name.startswith("llm."):
        return "llm"
    if name.startswith("vision_embedding."):
        return "vision"
    return "unknown"


def biased_layers(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Linear layers of a block that the LLM's own architecture builds with a bias."""
    attention, mlp = LINEAR_LAYERS[:4], LINEAR_LAYERS[4:]
    biased: tuple[str, ...] = ()
    if config.get("llm_model_type", "qwen2") == "qwen2":
        biased = attention[:3]
    elif config.get("attention_bias"):
        biased = attention
    return biased + mlp if config.get("mlp_bias") else biased


def extra_biases(names: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """Layers of the LLM (``model.layers...``) with a bias that its architecture lacks.

    The released LoRA code gives a bias to every layer that it touches.

    Args:
        names: of a checkpoint's tensors.
        config: the contents of its ``config.json``.
    """
    own = biased_layers(config)
    unbiased = tuple(layer for layer in LINEAR_LAYERS if layer not in own)
    layers = (
        name.removeprefix("llm.").removesuffix(".bias")
        for name in names
        if name.startswith("llm.") and name.endswith(".bias")
    )
    return sorted(layer for layer in layers if layer.endswith(unbiased))


def expected_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Names and shapes of a merged model's tensors.

    Args:
        config: the keys of ``VoRAConfig``, with the LLM's defaults filled in.

    Raises:
        ConfigError: the LLM is of another family, or a key is missing.
    """
    try:
        return _block_shapes(config) | _other_shapes(config)
    except KeyError as error:
        raise ConfigError(f"The model's configuration has no {error.args[0]}.") from error


def _block_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    if config.get("llm_model_type", "qwen2") not in SUPPORTED_LLMS:
        raise ConfigError(f"The LLM {config['llm_model_type']!r} is not supported.")
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads, head = head_sizes(config)
    linear: dict[str, Shape] = {
        "self_attn.q_proj": (heads * head, hidden),
        "self_attn.k_proj": (kv_heads * head, hidden),
        "self_attn.v_proj": (kv_heads * head, hidden),
        "self_attn.o_proj": (hidden, heads * head),
        "mlp.up_proj": (inner, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    block = {f"{name}.weight": shape for name, shape in linear.items()}
    block |= {f"{name}.bias": linear[name][:1] for name in biased_layers(config)}
    block |= {f"{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
    if config.get("llm_model_type") == "qwen3":
        block |= {f"self_attn.{which}_norm.weight": (head,) for which in "qk"}
    shapes = {
        f"llm.model.layers.{index}.{name}": shape
        for index in range(config["num_hidden_layers"])
        for name, shape in block.items()
    }
    for layer in config.get("extra_biases") or []:
        shapes[f"llm.{layer}.bias"] = shapes[f"llm.{layer}.weight"][:1]
    return shapes


def _other_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    patch = config.get("patch_size", 14)
    width = config.get("vision_embedding_intermediate_size", 1536)
    grid = config.get("image_size", 448) // patch
    merged = width * config.get("spatial_merge_size", 1) ** 2
    return {
        "llm.model.embed_tokens.weight": (vocabulary, hidden),
        "llm.model.norm.weight": (hidden,),
        "llm.lm_head.weight": (vocabulary, hidden),
        "vision_embedding.pos_embed": (1, grid**2, width),
        "vision_embedding.patchifier.proj.weight": (width, 3, patch, patch),
        "vision_embedding.patchifier.proj.bias": (width,),
        "vision_embedding.patchifier.norm.weight": (width,),
        "vision_embedding.out_proj.weight": (hidden, merged),
    }


def head_sizes(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Attention heads, key and value heads, and values of one head."""
    heads: int = config["num_attention_heads"]
    kv_heads: int = config.get("num_key_value_heads") or heads
    head: int = config.get("head_dim") or config["hidden_size"] // heads
    return heads, kv_heads, head


def kv_values_per_token(config: Mapping[str, Any]) -> int:
    """Values of keys and values that one token adds to the KV cache, all layers together."""
    _, kv_heads, head = head_sizes(config)
    layers: int = config["num_hidden_layers"]
    return 2 * layers * kv_heads * head


def complain(unknown: Iterable[str], missing: Iterable[str]) -> None:
    """Stop a load that would leave tensors unused or weights unset.

    Raises:
        CheckpointError: either set has members; up to eight of each are named.
    """
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})"
        for kind, names in (("unknown", sorted(unknown)), ("missing", sorted(missing)))
        if names
    ]
    if problems:
        raise CheckpointError("The checkpoint's tensors do not fit: " + ", ".join(problems) + ".")


def check_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape], *, tied: bool) -> None:
    """Compare a checkpoint's names and shapes with what its configuration calls for.

    Args:
        found: every tensor of the checkpoint, LoRA factors and ``aux_vision`` included.
        expected: of :func:`expected_shapes`.
        tied: whether the output matrix is the token embedding, so that it may be absent.

    Raises:
        CheckpointError: tensors are unknown, missing or of another shape; they are named.
    """
    served = {n: s for n, s in found.items() if part_of(n) not in ("lora", "aux")}
    for name in found:
        base = name.removesuffix(LORA_A).removesuffix(LORA_B)
        if part_of(name) == "lora" and not {base + LORA_A, base + LORA_B} <= found.keys():
            raise CheckpointError(f"The LoRA factor {name} lacks its other half.")
    head = {"llm.lm_head.weight"} if tied else set()
    complain(served.keys() - expected.keys() - head, expected.keys() - served.keys() - head)
    wrong = sorted(n for n, shape in served.items() if n in expected and expected[n] != shape)
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{len(wrong)} tensors have another shape than the configuration calls for: "
            f"{name} is {list(served[name])}, not {list(expected[name])}."
        )
