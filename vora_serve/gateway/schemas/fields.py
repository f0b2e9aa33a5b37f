"""The allowlist of request fields: what becomes of those that are not on it.

A schema's own fields are the allowlist. Any other field is refused, or dropped and named in the
answer's ``x-vora-dropped-fields`` header, as this table and the configuration say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vora_serve.errors import InvalidRequestError
from vora_serve.gateway.settings import FieldAction, FieldSettings

# Harmless where dropped, and sent by common clients and evaluation tools.
_DROPPED = (
    "annotations",
    "cache_control",
    "chat_template_kwargs",
    "context_management",
    "include_reasoning",
    "media_io_kwargs",
    "metadata",
    "moderation",
    "phase",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "session_id",
    "store",
    "stream_interval",
    "stream_options",
    "thinking",
    "verbosity",
    "parsed",
    "parsed_arguments",
    "prompt_cache_breakpoint",
)

# Refused whatever ``fields.unknown`` says: they change what the engine computes or may cost.
_REFUSED = (
    "chat_template",
    "documents",
    "ec_transfer_params",
    "image_embeds",
    "kv_transfer_params",
    "mm_payload",
    "mm_processor_kwargs",
    "priority",
    "prompt_embeds",
    "request_id",
    "truncate_prompt_tokens",
    "use_beam_search",
    "uuid",
    "vllm_xargs",
)

DEFAULT_ACTIONS: dict[str, FieldAction] = {
    **dict.fromkeys(_DROPPED, "drop"),
    **dict.fromkeys(_REFUSED, "refuse"),
}

MAX_NAME_CHARS = 64


class FieldPolicy:
    """Decides over fields that a schema does not know, and remembers what it dropped.

    Args:
        settings: The configured actions.
    """

    def __init__(self, settings: FieldSettings) -> None:
        self._unknown: FieldAction = settings.unknown
        self._actions = {**DEFAULT_ACTIONS, **settings.actions}
        self.dropped: list[str] = []

    def settle(self, extra: Mapping[str, Any], where: str = "") -> None:
        """Drop or refuse each field of ``extra``; a null says nothing and is dropped silently.

        Raises:
            InvalidRequestError: a field is refused.
        """
        for name, value in extra.items():
            if value is None:
                continue
            shown = "".join(char if char.isprintable() else "?" for char in name[:MAX_NAME_CHARS])
            path = f"{where}.{shown}" if where else shown
            if self._actions.get(name, self._unknown) == "refuse":
                raise InvalidRequestError(
                    f"The field '{path}' is not supported here.",
                    param=path,
                    code="unsupported_parameter",
                )
            if path not in self.dropped and len(self.dropped) < 32:
                self.dropped.append(path)
