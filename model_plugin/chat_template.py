"""Chat templates: the default one, and how any other takes a conversation with images.

Templates differ in what they take. Some place images themselves, from content given as a list of
parts; some take strings alone, in which images are marked; some take nothing but lists. Each is
used as it is: the conversation is put into the form that it takes.
"""

from functools import lru_cache
from typing import Any, Literal

from transformers.utils.chat_template_utils import render_jinja_template

from model_plugin.errors import CheckpointError
from model_plugin.images import IMAGE_TOKEN, RELEASED_IMAGE_TOKEN

Messages = list[dict[str, Any]]
#: ``any``: strings, and lists whose images it places; ``strings`` or ``lists`` alone.
ContentForm = Literal["any", "strings", "lists"]

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

#: Turns a message's list of parts into text in which images are marked, before a template that
#: takes text alone sees it.
_PARTS_TO_TEXT = (
    "{%- set vora = namespace(messages=[]) %}"
    "{%- for message in messages %}"
    "{%- if message['content'] is string or message['content'] is not iterable"
    " or message['content'] is mapping %}"
    "{%- set vora.messages = vora.messages + [message] %}"
    "{%- else %}"
    "{%- set content = namespace(text='') %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] in ('image', 'image_url', 'input_image') %}"
    "{%- set content.text = content.text + '<|image_pad|>' %}"
    "{%- elif 'text' in part %}"
    "{%- set content.text = content.text + part['text'] %}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- set vora.messages = vora.messages + [dict(message, content=content.text)] %}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- set messages = vora.messages %}{{ '' }}"
)

_PROBE = "vora-probe"
#: Names that templates write without asking whether there are such tokens.
_TOKENS = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def content_form(template: str) -> ContentForm:
    """What a chat template takes as a message's content, found by trying it.

    Raises:
        CheckpointError: it shows no text, whatever it is given, or loses images.
    """
    form = _content_form(template)
    if form is None:
        raise CheckpointError(
            "The chat template cannot be used: of a question with one image, it does not show "
            "text and image once each."
        )
    return form


@lru_cache(maxsize=64)
def _content_form(template: str) -> ContentForm | None:
    text = {"type": "text", "text": _PROBE}
    lists = _shows(template, [{"type": "image"}, text], images=1)
    if not _shows(template, _PROBE, images=0):
        return "lists" if lists and _shows(template, [text], images=0) else None
    if lists:
        return "any"
    return "strings" if _shows(template, IMAGE_TOKEN + _PROBE, images=1) else None


def _shows(template: str, content: Any, images: int) -> bool:
    """Whether a question's text appears once in what a template renders, and its images do."""
    try:
        rendered, _ = render_jinja_template(
            conversations=[[{"role": "user", "content": content}]],
            chat_template=template,
            **_TOKENS,
        )
    except Exception:  # noqa: BLE001 - templates raise whatever their authors thought of
        return False
    shown = str(rendered[0]).replace(RELEASED_IMAGE_TOKEN, IMAGE_TOKEN)
    return shown.count(_PROBE) == 1 and shown.count(IMAGE_TOKEN) == images


def fit_content(messages: Messages, template: str) -> Messages:
    """A conversation in the form that a chat template takes.

    Args:
        messages: content is a string, None, or a list of parts.
        template: the chat template.

    Raises:
        CheckpointError: as :func:`content_form`.
    """
    form = content_form(template)
    if form == "any":
        return messages
    fit = _as_string if form == "strings" else _as_list
    return [message | {"content": fit(message.get("content"))} for message in messages]


def _as_string(content: Any) -> Any:
    """Text in which images are marked."""
    if not isinstance(content, list):
        return content
    return "".join(
        IMAGE_TOKEN if part.get("type") in ("image", "image_url") else str(part.get("text") or "")
        for part in content
    )


def _as_list(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def default_for(vocabulary: dict[str, int]) -> str | None:
    """ChatML, where a tokenizer has its tokens."""
    known = all(token in vocabulary for token in _CHATML_TOKENS)
    return DEFAULT_CHAT_TEMPLATE if known else None


def with_parts_as_text(template: str) -> str:
    """A chat template that first turns each list of parts into text in which images are marked.

    So extended, a template that takes text alone places images. It also shows tools that read
    templates, vLLM among them, that messages may be lists.

    Args:
        template: takes strings; used as it is behind the extension.
    """
    return _PARTS_TO_TEXT + template
