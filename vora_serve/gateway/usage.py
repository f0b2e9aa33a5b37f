"""Token usage: what the engine says, in OpenAI's names, with the images' share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Usage:
    """Tokens that one request used."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    image: int = 0

    @property
    def total(self) -> int:
        """Prompt and completion."""
        return self.prompt + self.completion


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def rewrite_usage(usage: dict[str, Any]) -> Usage:
    """Read an engine's usage object, and give its details OpenAI's shape in place.

    ``prompt_tokens_details`` gets ``cached_tokens`` and ``image_tokens``; vLLM's per-modality
    breakdown is where the latter comes from. The responses API says ``input`` for ``prompt``.
    """
    side = "input" if "input_tokens" in usage else "prompt"
    details = usage.get(f"{side}_tokens_details")
    details = dict(details) if isinstance(details, dict) else {}
    modalities = details.pop("multimodal_tokens", None)
    details.pop("created_cache_tokens", None)
    image = _count(modalities.get("image")) if isinstance(modalities, dict) else 0
    image = _count(details.get("image_tokens")) or image
    cached = _count(details.get("cached_tokens"))
    details["cached_tokens"] = cached
    details["image_tokens"] = image
    usage[f"{side}_tokens_details"] = details
    other = "output" if side == "input" else "completion"
    return Usage(
        prompt=_count(usage.get(f"{side}_tokens")),
        completion=_count(usage.get(f"{other}_tokens")),
        cached=cached,
        image=image,
    )
