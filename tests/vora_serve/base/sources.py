"""Tiny LLMs on disk, as transformers and as llama.cpp write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES: dict[str, tuple[Any, Any, Any]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, gguf.MODEL_ARCH.QWEN2),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, gguf.MODEL_ARCH.QWEN3),
    "llama": (LlamaConfig, LlamaForCausalLM, gguf.MODEL_ARCH.LLAMA),
}
TEXT = [
    "The quick brown fox counts 1, 2, 3 and 12345.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1,  2))",
    "It's what she's said: they'll go, I'd stay. ÄÖÜ café naïve.",
]
#: A token of the Llama tokenizer that is not made of others.
WHOLE = "zymurgy"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _splitter(pre: str) -> pre_tokenizers.PreTokenizer:
    """How text is split, as the families' own ``tokenizer.json`` files say it."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([digits, own])
    split = _SPLIT.replace("DIGITS", "{1,3}" if pre == "llama-bpe" else "")
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), behavior="isolated"), byte_level]
    )


def tokenizer(
    pre: str = "qwen2", special: tuple[str, ...] = SPECIAL, template: str | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that splits text as a family does, without ``<|image_pad|>``."""
    backend = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    backend.pre_tokenizer = _splitter(pre)
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT * 4, trainer)
    if pre == "llama-bpe":  # a word that no merges lead to, which Llama 3 takes whole
        plain = json.loads(backend.to_str())
        plain["model"]["vocab"]["Ġ" + WHOLE] = len(plain["model"]["vocab"])
        backend = Tokenizer.from_str(json.dumps(plain))
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=special[0], clean_up_tokenization_spaces=False
    )
    made.chat_template = template
    return made


def llm(family: str, rows: int, *, tied: bool, seed: int = 3) -> Any:
    """A random LLM whose greedy answers vary."""
    config, kind, _ = FAMILIES[family]
    torch.manual_seed(seed)
    model = kind(
        config(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=96,
            max_position_embeddings=256,
            vocab_size=rows,
            tie_word_embeddings=tied,
            initializer_range=0.3,
            eos_token_id=0,
            bos_token_id=0,
        )
    )
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):  # zero otherwise, and a lost one not missed
            torch.nn.init.normal_(parameter)
    return model.eval()


def save(
    folder: Path,
    family: str = "qwen2",
    *,
    tied: bool = True,
    rows: int | None = None,
    made: PreTrainedTokenizerFast | None = None,
) -> Path:
    """A checkpoint as transformers saves it; as many rows as the tokenizer has tokens."""
    made = made or tokenizer()
    llm(family, rows or len(made), tied=tied).save_pretrained(folder)
    made.save_pretrained(str(folder))
    return folder


def save_gguf(
    file: Path, model: Any, made: PreTrainedTokenizerFast, pre: str, *, scaled: bool = False
) -> Path:
    """A GGUF file of a model, as llama.cpp's converter writes it, in float32."""
    family = model.config.model_type
    arch = FAMILIES[family][2]
    config = model.config
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    vocabulary = sorted(made.get_vocab().items(), key=lambda entry: entry[1])
    control = gguf.TokenType.CONTROL
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types(
        [control if t in made.get_added_vocab() else gguf.TokenType.NORMAL for t, _ in vocabulary]
    )
    merges = json.loads(made.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(made.eos_token_id)
    if made.chat_template:
        writer.add_chat_template(made.chat_template)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for layer, count in heads.items():
            if family == "llama" and name.endswith(f"{layer}.weight"):
                values = _rotate(values, count)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), values)
    if scaled:  # as Llama 3.1
        writer.add_tensor("rope_freqs.weight", np.ones(config.head_dim // 2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _rotate(weights: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows that llama.cpp's rotary embedding expects of Llama."""
    split = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(weights.shape))
