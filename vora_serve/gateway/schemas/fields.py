"""The allowlist of request fields: what becomes of those that are not on it.

A schema's own fields are the allowlist. Any other field is refused, or dropped and named in the
answer's ``x-vora-dropped-fields`` header, as this table and the configuration say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vora_core.errors import InvalidRequestError
from vora_serve.gateway.settings import FieldAction, FieldSettings

# Harmless where dropped, and sent by common clients and evaluation tools. Named here so that they
# are dropped even where the configuration refuses what is unknown.
_DROPPED = (
    "annotations",
    "cache_control",
    "chat_template_kwargs",
    "context_management",
    "include_reasoning",
    "max_tool_calls",
    "media_io_kwargs",
    "metadata",
    "moderation",
    "phase",
    "prediction",
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

# Refused wherever they are, whatever ``fields.unknown`` says: they are part of what is asked, or
# set how the engine reads it.
_REFUSED = (
    *("audio", "audio_url", "audios", "file", "file_data", "file_id"),
    *("file_url", "image", "image_embeds", "image_url", "images", "input_audio"),
    *("mm_processor_kwargs", "prompt_embeds", "video", "video_url", "videos"),
)

# Refused beside ``model``, where they change what the engine computes, or may cost. Deeper inside,
# where clients keep notes of their own under such names, they do nothing.
_REFUSED_AT_THE_TOP = (
    *("access_programs", "background_options", "chat_template", "conversation", "documents"),
    *("ec_transfer_params", "enable_response_messages", "format", "grammar", "guided_choice"),
    *("guided_decoding_backend", "guided_grammar", "guided_json", "guided_regex", "json_schema"),
    *("kv_transfer_params", "logits_processors", "mm_payload", "previous_input_messages"),
    *("previous_response_id", "priority", "prompt", "prompt_token_ids", "repetition_detection"),
    *("request_id", "system", "thinking_token_budget", "truncate_prompt_tokens"),
    *("truncation_side", "use_beam_search", "uuid", "vllm_xargs", "watermarking"),
    *("web_search_options",),
    # Samplers of other engines.
    *("dry_multiplier", "mirostat", "mirostat_mode", "repeat_penalty", "tfs", "tfs_z", "top_a"),
    *("typical_p", "xtc_probability"),
)

# Refused in parts of content: there, ``uuid`` refers to an image that an engine saw earlier.
_REFUSED_IN_PARTS = ("uuid",)

DEFAULT_ACTIONS: dict[str, FieldAction] = {
    **dict.fromkeys(_DROPPED, "drop"),
    **dict.fromkeys(_REFUSED, "refuse"),
}
TOP_ACTIONS: dict[str, FieldAction] = {
    **DEFAULT_ACTIONS,
    **dict.fromkeys(_REFUSED_AT_THE_TOP, "refuse"),
}
PART_ACTIONS: dict[str, FieldAction] = {
    **DEFAULT_ACTIONS,
    **dict.fromkeys(_REFUSED_IN_PARTS, "refuse"),
}
# What is unknown in here sets how the engine works.
_SETTINGS = frozenset(("mm_processor_kwargs", "structured_outputs"))

MAX_NAME_CHARS = 64
MAX_NAMED = 32


class FieldPolicy:
    """Decides over fields that a schema does not know, and remembers what was dropped.

    Args:
        settings: The configured actions.
        own: What an API decides beside the tables here.
    """

    def __init__(
        self, settings: FieldSettings, own: Mapping[str, FieldAction] | None = None
    ) -> None:
        self._unknown: FieldAction = settings.unknown
        self._configured = settings.actions
        self._own = own or {}
        self.dropped: list[str] = []

    def note(self, path: str) -> None:
        """Remember that a field was dropped, to name it in the answer's header."""
        if len(self.dropped) < MAX_NAMED and path not in self.dropped:
            self.dropped.append(path)

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
            if self._action(name, value, where) == "refuse":
                raise InvalidRequestError(
                    f"The field '{path}' is not supported here.",
                    param=path,
                    code="unsupported_parameter",
                )
            self.note(path)

    def _action(self, name: str, value: Any, where: str) -> FieldAction:
        if name in self._configured:
            return self._configured[name]
        if where in _SETTINGS:
            action: FieldAction | None = "refuse"
        else:
            action = self._own.get(name) or self._table(where).get(name)
        if action is None:
            return self._unknown
        # Switched off or empty, a field asks for nothing.
        return "drop" if value in (False, "", [], {}) else action

    @staticmethod
    def _table(where: str) -> Mapping[str, FieldAction]:
        if not where:
            return TOP_ACTIONS
        in_part = where.endswith("]") and (".content[" in where or ".output[" in where)
        return PART_ACTIONS if in_part else DEFAULT_ACTIONS
