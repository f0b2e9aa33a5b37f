"""Server-sent events: cutting a byte stream into whole events, cheaply."""

from __future__ import annotations

from collections.abc import Iterator

HEARTBEAT = b": heartbeat\n\n"
MAX_EVENT_BYTES = 8 * 2**20


class EventBuffer:
    """Keeps back the beginning of an event whose end has not arrived."""

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, piece: bytes) -> bytes:
        """All whole events so far, as one piece; may be empty.

        Raises:
            ValueError: an event is larger than any engine sends.
        """
        data = self._tail + piece if self._tail else piece
        if data.endswith(b"\n\n"):
            self._tail = b""
            return data
        end = data.rfind(b"\n\n")
        if end < 0:
            if len(data) > MAX_EVENT_BYTES:
                raise ValueError("an event is too large")
            self._tail = data
            return b""
        self._tail = data[end + 2 :]
        return data[: end + 2]


def split_events(whole: bytes) -> Iterator[bytes]:
    """The single events in what :meth:`EventBuffer.feed` gave, each with its end."""
    for event in whole.split(b"\n\n"):
        if event:
            yield event + b"\n\n"


def event_data(event: bytes) -> bytes | None:
    """The data of an event; None for a comment."""
    lines = [line[5:].lstrip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def event_name(event: bytes) -> bytes | None:
    """The event's name, where it has one."""
    if event.startswith(b"event:"):
        return event[6 : event.index(b"\n")].strip()
    return None
