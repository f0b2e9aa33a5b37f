"""What an engine's model cards say of the images that it takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vora_core.errors import VoRAError
from vora_core.geometry import ImageSettings
from vora_core.ready_pixels import ANNOUNCEMENT


def announced(cards: Iterable[dict[str, Any]]) -> dict[str, ImageSettings]:
    """Image settings by model; the entries are taken out of the cards.

    An entry that cannot be read, of a newer release say, is as good as none: its engine gets
    ordinary files.
    """
    result: dict[str, ImageSettings] = {}
    for card in cards:
        entry = card.pop(ANNOUNCEMENT, None)
        try:
            fields = {key: _hashable(value) for key, value in entry.items()}
            result[str(card["id"])] = ImageSettings(**fields)
        except (VoRAError, AttributeError, TypeError, ValueError):
            continue
    return result


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
