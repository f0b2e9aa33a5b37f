"""A base's chat template: kept, and extended where it takes text alone."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from model_plugin import CheckpointError
from model_plugin.chat_template import DEFAULT_CHAT_TEMPLATE, content_form, with_parts_as_text

_USER = {"role": "user", "content": "  Two <b>lines</b>\nhere "}
_ANSWER = {"role": "assistant", "content": "Yes."}
_SYSTEM = {"role": "system", "content": "Be brief."}
_CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [_USER],
    [_USER, _ANSWER],
    [_USER, _ANSWER, _USER],
    [_SYSTEM, _USER, _ANSWER, _USER],
)


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template of a tokenizer; None where it has none."""
    return str(tokenizer.get_chat_template()) if tokenizer.chat_template else None


def fit_template(own: str | None) -> tuple[str, str]:
    """A chat template that places images, made from a base's own.

    Args:
        own: the base's; None for a base without one.

    Returns:
        The template, and what was done, as a phrase: "kept", "extended to place images", or
        "ChatML".

    Raises:
        CheckpointError: the base's own shows no text or loses images.
    """
    if own is None:
        return DEFAULT_CHAT_TEMPLATE, "ChatML"
    if content_form(own) != "strings":
        return own, "kept"
    extended = with_parts_as_text(own)
    if _same(own, extended) and _form(extended) == "any":
        return extended, "extended to place images"
    return own, "kept; it takes text in which images are marked"


def _form(template: str) -> str | None:
    try:
        return content_form(template)
    except CheckpointError:
        return None


def _same(own: str, extended: str) -> bool:
    """Whether two templates render conversations without images alike, or refuse both."""
    return all(
        _render(own, messages, prompt) == _render(extended, messages, prompt)
        for messages in _CONVERSATIONS
        for prompt in (False, True)
    )


def _render(template: str, messages: list[dict[str, Any]], prompt: bool) -> str | None:
    tokens = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    try:
        rendered, _ = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            add_generation_prompt=prompt,
            **tokens,
        )
    except (TemplateError, TypeError, ValueError):
        return None
    return str(rendered[0])
