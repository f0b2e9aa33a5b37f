"""Rows of public data sets to samples: whose turn it is, where images are, what is left out.

Understood: the released records (``frames``, ``conversations`` with ``from``/``value``; Parquet
rows hold the frames' bytes), LLaVA's (``image``, ``conversations``), ShareGPT's, OpenAI-style
``messages`` with ``images`` or with images in their content, TRL's ``prompt`` and ``completion``,
The Cauldron's ``texts``, and captions beside a tar's images. An image without a place in the text
comes before the first question, as in the released code.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_plugin.images import IMAGE_TOKEN, RELEASED_IMAGE_TOKEN
from vora_serve.training.data import Sample
from vora_serve.training.labels import SampleError
from vora_serve.training.row_images import open_image, raw_images
from vora_serve.training.rows import CAPTION

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
}
_TOOLS = ("tool_calls", "function_call", "tools", "functions")
_PLACE = re.compile(f"({re.escape(RELEASED_IMAGE_TOKEN)}|{re.escape(IMAGE_TOKEN)})")
_OTHER_PLACE = re.compile(r"<(video|audio)>(?!.*</\1>)", re.DOTALL)
_IMAGE_PARTS = ("image", "image_url", "input_image")


@dataclass(frozen=True)
class Place:
    """Where an image is in a turn, with the image where the turn holds it itself."""

    item: Any = None


@dataclass(frozen=True)
class Turn:
    """What one said: texts, and places of images between them."""

    role: str
    pieces: tuple[str | Place, ...]

    @property
    def text(self) -> str:
        """Its texts."""
        return "".join(piece for piece in self.pieces if isinstance(piece, str))

    @property
    def places(self) -> list[Place]:
        """Its images' places."""
        return [piece for piece in self.pieces if isinstance(piece, Place)]


def read_row(row: Mapping[str, Any], image_dir: Path | None = None) -> Sample:
    """The conversation and images of a row.

    Args:
        row: a record of one of the forms above.
        image_dir: folder that relative paths of images start from.

    Raises:
        SampleError: there is no conversation, an answer is missing or empty, an image cannot be
            read, text and images do not fit together, or there is more to the row than texts and
            images (tools, videos).
    """
    for field in _TOOLS:
        if row.get(field) not in (None, "", "[]", [], {}):
            raise SampleError(f"The field {field} holds tools, which are not trained on.", "tools")
    turns = _turns(row)
    kept = _answered(turns)
    places = [place for turn in turns if turn.role == "user" for place in turn.places]
    raw = _placed(raw_images(row), places)
    lost = sum(len(turn.places) for turn in turns) - sum(len(turn.places) for turn in kept)
    images = [open_image(item, image_dir) for item in (raw[:-lost] if lost else raw)]
    unplaced = 0 if places else len(images)
    messages: list[dict[str, Any]] = []
    for turn in kept:
        content: Any = turn.text
        if turn.role == "user" and (turn.places or unplaced):
            parts = [{"type": "image"}] * unplaced
            unplaced = 0
            content = parts + [
                {"type": "image"} if isinstance(piece, Place) else {"type": "text", "text": piece}
                for piece in turn.pieces
                if piece != ""
            ]
        messages.append({"role": turn.role, "content": content})
    return Sample(messages, images)


def shorten(sample: Sample) -> Sample | None:
    """The sample without its last question and answer; None when only one pair is left."""
    messages = sample.messages
    last_question = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=0)
    kept = messages[:last_question]
    if not any(message["role"] == "assistant" for message in kept):
        return None
    places = sum(
        part["type"] == "image"
        for message in kept
        if isinstance(message["content"], list)
        for part in message["content"]
    )
    return Sample(kept, sample.images[:places])


def _placed(raw: list[Any], places: list[Place]) -> list[Any]:
    """The images in the order of their places: the turns' own, else the row's."""
    own = [place.item for place in places if place.item is not None]
    if places and len(own) + len(raw) != len(places):
        raise SampleError(
            f"The text places {len(places)} images, but the row holds {len(own) + len(raw)}.",
            "image missing" if len(own) + len(raw) < len(places) else "image unplaced",
        )
    rest = iter(raw)
    return [next(rest) if p.item is None else p.item for p in places] if places else raw


def _answered(turns: list[Turn]) -> list[Turn]:
    """The turns from the first question to the last answer, with what the system said."""
    spoken = [index for index, turn in enumerate(turns) if turn.role != "system"]
    questions = [index for index in spoken if turns[index].role == "user"]
    answers = [index for index in spoken if turns[index].role == "assistant"]
    if not questions or not answers or answers[-1] < questions[0]:
        raise SampleError("The conversation has no question with an answer.")
    kept = [
        turn
        for index, turn in enumerate(turns)
        if (turn.role == "system" and index < answers[-1]) or questions[0] <= index <= answers[-1]
    ]
    roles = [turn.role for turn in kept if turn.role != "system"]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise SampleError("Questions and answers do not take turns.")
    return kept


def _turns(row: Mapping[str, Any]) -> list[Turn]:
    """The turns of a row, in order."""
    turns = []
    for record in _records(row):
        if not isinstance(record, Mapping):
            raise SampleError("A turn of the conversation is not a record.")
        said = str(record.get("from", record.get("role")))
        role = _ROLES.get(said.strip().lower())
        if any(record.get(field) for field in _TOOLS):
            raise SampleError("A turn calls tools, which are not trained on.", "tools")
        if role is None:
            raise SampleError(
                f"A turn is {said!r}'s; it must be human's, gpt's or system's.", "role"
            )
        turn = Turn(role, _pieces(role, record.get("value", record.get("content"))))
        if role == "assistant" and not turn.text.strip():
            raise SampleError("An answer is empty.")
        if role == "user" and _OTHER_PLACE.search(turn.text):
            raise SampleError("The text places a video or audio.", "other media")
        turns.append(turn)
    return turns


def _records(row: Mapping[str, Any]) -> Sequence[Any]:
    """What was said, in whichever field and form it is."""
    names = ("conversations", "messages", "conversation", "texts")
    records = next((row[name] for name in names if row.get(name)), None)
    if records is None and row.get("prompt") and row.get("completion"):
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, str) and isinstance(completion, str):
            records = _pair(prompt, completion)
        elif not isinstance(prompt, str) and not isinstance(completion, str):
            records = [*prompt, *completion]
    if records is None and row.get(CAPTION):
        records = _pair("Describe the image.", row[CAPTION])
    if isinstance(records, Sequence) and records and isinstance(records[0], list):
        records = records[0]  # the released parquet files nest it once more
    if not isinstance(records, Sequence) or isinstance(records, str) or not records:
        fields = ", ".join(sorted(name for name in row if not name.startswith("__"))) or "none"
        raise SampleError(f"The row has no conversation (its fields: {fields}).")
    if isinstance(records[0], Mapping) and {"user", "assistant"} <= records[0].keys():
        records = [turn for r in records for turn in _pair(r["user"], r["assistant"])]
    return records


def _pair(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _pieces(role: str, content: Any) -> tuple[str | Place, ...]:
    """Texts and places of a turn's content; only a question's text is searched for places."""
    if isinstance(content, str):
        return _split(content) if role == "user" else (content,)
    if not isinstance(content, Sequence):
        raise SampleError("A turn has no text.")
    found: list[str | Place] = []
    for part in content:
        if isinstance(part, str):
            found.append(part)
            continue
        if not isinstance(part, Mapping):
            raise SampleError("A turn's content is neither text nor a list of parts.")
        kind = part.get("type") or next((k for k in (*_IMAGE_PARTS, "text") if part.get(k)), None)
        if kind in _IMAGE_PARTS:
            found.append(Place(_item_of(part)))
        elif kind in ("text", "input_text", "output_text"):
            found.append(str(part.get("text") or ""))
        else:
            raise SampleError(f"A turn holds a part of type {kind!r}.", "other media")
    if any(isinstance(piece, Place) for piece in found):
        if role != "user":
            raise SampleError("An image is in a turn that is not a question.", "image unplaced")
        return tuple(found)
    texts = [piece for piece in found if isinstance(piece, str)]
    return _split("".join(texts)) if role == "user" else tuple(texts)


def _item_of(part: Mapping[str, Any]) -> Any:
    """The image that a part of a turn's content holds, if it does; else it is the row's next."""
    for key in (*_IMAGE_PARTS, "url", "path", "bytes", "source", "data"):
        value = part.get(key)
        if value is not None and value not in ("", b""):
            return value
    return None


def _split(text: str) -> tuple[str | Place, ...]:
    """Text at the places of its images."""
    pieces = _PLACE.split(text)
    return tuple(Place() if index % 2 else piece for index, piece in enumerate(pieces))
