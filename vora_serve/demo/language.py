"""The demo's tokenizer and LLM: a tiny Qwen2 that learns the world's language from text alone."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config

from vora_serve.demo.samples import Images, Texts

#: Qwen2.5's chat and vision tokens.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# How Qwen2.5 splits text before byte-pair encoding: words with their space, digits, marks.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTEXT = 1024


def train_tokenizer(seed: int, vocab_size: int, samples: int = 3000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the demo world's language.

    Args:
        seed: of the text that it is trained on.
        vocab_size: tokens in all, the 256 bytes and the special tokens included.
        samples: conversations to train on.

    Returns:
        A fast tokenizer; any text can be encoded, the world's words are one token each.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts, images = Texts(seed), Images(seed, text_share=1.0)
    corpus = []
    for index in range(samples):
        for source in (texts, images):
            corpus += [str(message["content"]) for message in source[index].messages]
    corpus += ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * samples
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def llm_config(
    vocab_size: int, *, hidden_size: int, layers: int, heads: int, kv_heads: int, mlp: int
) -> Qwen2Config:
    """Configuration of the tiny Qwen2."""
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=CONTEXT,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        initializer_range=0.05,
        eos_token_id=SPECIAL_TOKENS.index("<|im_end|>"),
        pad_token_id=SPECIAL_TOKENS.index("<|endoftext|>"),
    )
