"""What a checkpoint's files say of its processor: image settings and chat template."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from model_plugin.chat_template import content_form, default_for
from model_plugin.errors import CheckpointError


def template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A tokenizer's own template; ChatML instead, where it knows that but places no images.

    The released checkpoints come with such a template, of the language model that they were made
    from, and were not trained with it.
    """
    if not tokenizer.chat_template:
        return None
    own = str(tokenizer.get_chat_template())
    chatml = default_for(tokenizer.get_added_vocab())
    return chatml if chatml is not None and content_form(own) == "strings" else own


def read_chat_template(path: str, hub: dict[str, Any]) -> str | None:
    """The checkpoint's own template, from the file that carries one with list content."""
    template = _read(path, "chat_template.jinja", hub)
    if template is None:
        template = read_json(path, "chat_template.json", hub).get("chat_template")
    return template


def read_json(path: str, name: str, hub: dict[str, Any]) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint; empty if there is no such file."""
    try:
        data = json.loads(_read(path, name, hub) or "{}")
    except ValueError as error:
        raise CheckpointError(f"{path}/{name} is not valid JSON.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}/{name} holds no JSON object.")
    return data


def _read(path: str, name: str, hub: dict[str, Any]) -> str | None:
    file = cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return Path(file).read_text(encoding="utf-8") if file else None
