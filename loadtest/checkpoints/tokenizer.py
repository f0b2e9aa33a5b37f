"""A tokenizer for checkpoints with random weights: every id has a text, common words are one token.

Answers of a random model hold any id, and a stream shows a token only where it has a text. Prompts
made of ``WORDS`` have as many tokens as words here, and in the tokenizers of real LLMs too.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from loadtest.checkpoints.writer import write_json

#: Frequent English words; with a space before them, each is one token.
WORDS = """
the of and to in is that for it as was with be by on not he his but at are this have from
or had an they which one you were all her she there would their we him been has when who
will no more if out so up said what its about than into them can only other time new some
could these two may first then do any like my now over such our man me even most made
after also did many off before must well back through years much where your way down
should because long each just state people those too world good very make still see
between work life being here
""".split()  # noqa: SIM905

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = """\
{%- if messages and messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ('image', 'image_url') -%}
{{- IMAGE -}}
{%- elif part['type'] == 'text' -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}"""


def special_id(vocab: int, token: str) -> int:
    """Id of a special token in a vocabulary of ``vocab`` rows; Qwen's own in Qwen's own sizes."""
    first = 151643 if vocab >= 151936 else vocab - len(SPECIAL)
    return first + SPECIAL.index(token)


def write_tokenizer(
    folder: Path, vocab: int, max_length: int, image: str = "<|image_pad|>"
) -> None:
    """Write ``tokenizer.json``, its configuration and the chat template.

    Args:
        folder: where to.
        vocab: rows of the LLM's embedding, at least 1024.
        max_length: longest prompt, in tokens.
        image: what the template writes for an image.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {symbol: at for at, symbol in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = "Ġ"
        for letter in word:
            if left + letter not in ids:
                ids[left + letter] = len(ids)
                merges.append((left, letter))
            left += letter
    first = special_id(vocab, SPECIAL[0])
    for at in range(len(ids), first):
        ids[f"Ġw{at}"] = at
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    # The embedding is padded beyond Qwen's own vocabulary; a random model picks those ids, too.
    tokenizer.add_tokens([f" w{at}" for at in range(first + len(SPECIAL), vocab)])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": list(SPECIAL[1:]),
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_length,
        },
    )
    template = CHAT_TEMPLATE.replace("IMAGE", repr(image))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_json(folder / "generation_config.json", {"do_sample": False, "repetition_penalty": 1.0})
