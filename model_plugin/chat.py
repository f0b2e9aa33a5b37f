"""Chat messages to token ids, such that text is only ever text.

A chat template writes control tokens; users write text. Tokenising the rendered string as a whole
would let a user who types ``<|im_end|>`` end the turn, or one who types ``<|image_pad|>`` claim an
image. Here control strings in what users wrote are set aside before the template runs and put back
after the rendered string has been cut at the template's own control tokens. Pieces between control
tokens are tokenised on their own, which is what tokenizers do anyway: ordinary text gets the ids
that it always gets.
"""

import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

#: ChatML as the released checkpoints use it: a default system prompt, nothing around images. Tools
#: are described, called and answered in JSON between tags, as Qwen2.5 does.
DEFAULT_CHAT_TEMPLATE = r"""
{%- macro show(content) -%}
{%- if content is string -%}
{{- content -}}
{%- else -%}
{%- for part in content or [] -%}
{%- if part['type'] in ('image', 'image_url', 'input_image') -%}
{{- '<|image_pad|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set told = messages and messages[0]['role'] == 'system' -%}
{%- if messages and (tools or not told) -%}
{{- '<|im_start|>system\n' -}}
{{- show(messages[0]['content']) if told else 'You are a helpful assistant.' -}}
{%- if tools -%}
{{- '\n\n# Tools\n\nYou can call these functions, described in JSON:\n<tools>' -}}
{%- for tool in tools -%}
{{- '\n' + (tool | tojson) -}}
{%- endfor -%}
{{- '\n</tools>\n\nTo call one, answer with its name and arguments in JSON:\n' -}}
{{- '<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>' -}}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if tools and told and loop.first -%}
{%- elif message['role'] == 'tool' -%}
{%- if loop.first or loop.previtem['role'] != 'tool' -%}
{{- '<|im_start|>user' -}}
{%- endif -%}
{{- '\n<tool_response>\n' + show(message['content']) + '\n</tool_response>' -}}
{%- if loop.last or loop.nextitem['role'] != 'tool' -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- else -%}
{{- '<|im_start|>' + message['role'] + '\n' + show(message['content']) -}}
{%- for call in message['tool_calls'] or [] -%}
{%- set function = call['function'] or call -%}
{{- '\n' if message['content'] or not loop.first else '' -}}
{{- '<tool_call>\n{"name": "' + function['name'] + '", "arguments": ' -}}
{{- (function['arguments'] | tojson) + '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- endif -%}
""".strip()

# Two planes of private-use characters: a fence, and one character for each set-aside string.
_FENCE = "\U000f0000"
_FIRST_MARK = 0xF0001
_PRIVATE = re.compile("[\U000f0000-\U000ffffd]")


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, render: Callable[..., str], *texts: Any
) -> list[int]:
    """Render a conversation and tokenise it, with everything in ``texts`` kept as text.

    Args:
        tokenizer: a fast tokenizer.
        render: called with shielded copies of ``texts``, returns the rendered conversation.
        *texts: JSON-like structures (messages, tools) whose strings users wrote.

    Returns:
        Token ids.
    """
    shield = Shield(control_tokens(tokenizer))
    rendered = render(*(shield.hide(text) for text in texts))
    return shield.encode(tokenizer, rendered)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Strings that the tokenizer turns into a token of their own wherever they stand."""
    return [str(token) for token in tokenizer.get_added_vocab()]


class Shield:
    """Sets control strings in text aside and puts them back as text.

    Args:
        controls: the control tokens' strings.
    """

    def __init__(self, controls: Iterable[str]) -> None:
        self._controls = sorted(controls, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._controls)) or r"(?!)")
        self._beginnings = {c[:end] for c in self._controls for end in range(1, len(c))}
        # Insertion order numbers the marks.
        self._marks: dict[str, str] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing had to be set aside."""
        return not self._marks

    def hide(self, value: Any) -> Any:
        """A copy of a JSON-like structure whose strings, keys included, hold no control token."""
        if isinstance(value, str):
            return self._hide_text(value)
        if isinstance(value, dict):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        return value

    def encode(self, tokenizer: PreTrainedTokenizerBase, rendered: str) -> list[int]:
        """Token ids of a rendered conversation, control tokens only where the template put them."""
        plain = plain_tokenizer(tokenizer)
        ids: list[int] = []
        position = 0
        for match in self._pattern.finditer(rendered):
            ids += self._encode_text(plain, rendered[position : match.start()])
            ids.append(tokenizer.convert_tokens_to_ids(match.group()))
            position = match.end()
        return ids + self._encode_text(plain, rendered[position:])

    def restore(self, rendered: str) -> str:
        """The rendered conversation with everything put back, for people to read."""
        hidden = list(self._marks)
        return re.sub(_FENCE + "(.)", lambda m: hidden[ord(m[1]) - _FIRST_MARK], rendered)

    def _encode_text(self, plain: Tokenizer, text: str) -> list[int]:
        text = self.restore(text)
        return plain.encode(text, add_special_tokens=False).ids if text else []

    def _hide_text(self, text: str) -> str:
        # Private-use characters of the user's own would be read as marks: set them aside too.
        text = _PRIVATE.sub(lambda m: self._mark(m[0]), text)
        text = self._pattern.sub(lambda m: self._mark(m[0]), text)
        # "<|im_" here and "end|>" in the next part would join into one.
        for length in range(max(map(len, self._controls), default=1) - 1, 0, -1):
            tail = text[-length:]
            if tail in self._beginnings:
                return text[:-length] + self._mark(tail)
        return text

    def _mark(self, text: str) -> str:
        if text not in self._marks:
            self._marks[text] = _FENCE + chr(_FIRST_MARK + len(self._marks))
        return self._marks[text]


def plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer without its added tokens: it reads every string as text."""
    return _without_added_tokens(tokenizer.backend_tokenizer)


@lru_cache(maxsize=8)
def _without_added_tokens(backend: Tokenizer) -> Tokenizer:
    description = json.loads(backend.to_str())
    description["added_tokens"] = []
    description["post_processor"] = None
    description["truncation"] = description["padding"] = None
    return Tokenizer.from_str(json.dumps(description))


def takes_list_content(template: str) -> bool:
    """Whether a chat template places images itself, from content given as a list of parts."""
    return bool(re.search(r"['\"](image|image_url)['\"]", template))
