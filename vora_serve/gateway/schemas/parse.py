"""From a request's body to what is forwarded: validated, bounded, with its images set apart."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from vora_core.errors import InvalidRequestError
from vora_serve.gateway.images import DocumentRef, ImageRef
from vora_serve.gateway.schemas.base import explain
from vora_serve.gateway.schemas.chat import ChatCompletionRequest
from vora_serve.gateway.schemas.completions import CompletionRequest
from vora_serve.gateway.schemas.fields import FieldPolicy
from vora_serve.gateway.schemas.files import document_in, pages_of, put_parts
from vora_serve.gateway.schemas.namespaces import Names, flatten
from vora_serve.gateway.schemas.responses import ResponsesRequest
from vora_serve.gateway.schemas.tolerate import tolerate
from vora_serve.gateway.schemas.tolerate_tools import in_older_words
from vora_serve.gateway.settings import FieldSettings
from vora_serve.gateway.stored import Turn

Kind = Literal["chat", "completion", "response"]

_BOM = b"\xef\xbb\xbf"

SCHEMAS: dict[Kind, type[BaseModel]] = {
    "chat": ChatCompletionRequest,
    "completion": CompletionRequest,
    "response": ResponsesRequest,
}


@dataclass
class ParsedRequest:
    """A request that passed validation."""

    kind: Kind
    payload: dict[str, Any]
    """What is forwarded, as a tree; images still by the caller's URLs."""
    model: str
    stream: bool
    wants_usage: bool
    """Whether the caller asked for a stream's usage chunk."""
    choices: int
    max_tokens: int | None
    text_chars: int
    prefix: str
    """The prompt's beginning, for affinity."""
    dropped: list[str]
    turn: Turn | None = None
    """Where the answer is one turn of a conversation that is kept."""
    legacy_calls: bool = False
    """Whether the caller knows calls only by the form that came before ``tool_calls``."""
    namespaces: Names = field(default_factory=dict)
    """Whose calls get their namespace back in the answer."""
    images: list[ImageRef] = field(default_factory=list)
    documents: list[DocumentRef] = field(default_factory=list)
    written: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """What makes the engine's request of the payload, where they differ."""
    _slots: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    _placed: list[str] = field(default_factory=list)
    """What is in the slots once the images are prepared."""

    def place_images(self, urls: list[str]) -> int:
        """Put the prepared images where the caller's URLs were.

        Args:
            urls: ``data:`` URLs in strict base64, in the request's order.

        Returns:
            Bytes of the caller's own ``data:`` URLs that are let go of.
        """
        placed = {id(url) for url in urls}  # by identity: hashing megabytes takes a millisecond
        given = {id(ref.url): ref.url for ref in self.images if ref.url[:5].lower() == "data:"}
        for (holder, key), url in zip(self._slots, urls, strict=True):
            holder[key] = url
        self._placed = urls
        self.images = [replace(ref, url="", content=None) for ref in self.images]
        return sum(len(url) for key, url in given.items() if key not in placed)

    def place_pages(self, files: Sequence[Sequence[bytes]]) -> int:
        """Put the images of the files' pages where the files were, each as an image's file.

        Returns:
            Bytes of the files' data that are let go of.
        """
        given = sum(len(document.data or "") for document in self.documents)
        # From the last one on, so that the positions of those before it stay what they are.
        for document, pages in reversed(list(zip(self.documents, files, strict=True))):
            at = document.position
            self.images[at:at] = pages_of(document, pages)
            self._slots[at:at] = put_parts(self.payload, document, len(pages))
        self.documents = []
        return given

    def encode(self) -> bytes:
        """The JSON body for the engine.

        Images are put into the finished text: nothing in their URLs needs an escape, and looking
        for it, in a buffer that grows, takes longer than all else that is done to a small image.
        """
        mark = secrets.token_hex(16)  # that no text of the caller's contains
        slots = self._slots[: len(self._placed)]
        for number, (holder, key) in enumerate(slots):
            holder[key] = f"{mark}{number:08d}"
        body = to_json(self.payload if self.written is None else self.written(self.payload))
        for (holder, key), url in zip(slots, self._placed, strict=True):
            holder[key] = url
        first, *rest = body.split(mark.encode())
        pieces = [first]
        for piece in rest:
            pieces += [self._placed[int(piece[:8])].encode(), piece[8:]]
        return b"".join(pieces)

    def forget(self) -> None:
        """Let go of prompt and images: the engine has them."""
        self.payload = {}
        self.images = []
        self.documents = []
        self._slots = []
        self._placed = []


def parse_request(kind: Kind, body: bytes, settings: FieldSettings) -> ParsedRequest:
    """Validate a body.

    Raises:
        InvalidRequestError: no JSON object, an unknown or refused field, a value out of bounds.
    """
    return parse_tree(kind, read_object(body), settings)


def read_object(body: bytes) -> dict[str, Any]:
    """The body's JSON object.

    Raises:
        InvalidRequestError: it is no JSON, or no object.
    """
    try:
        tree = from_json(body.removeprefix(_BOM), allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise _invalid_json(str(error)) from None
    if not isinstance(tree, dict):
        raise InvalidRequestError("The body is not a JSON object.", code="invalid_json")
    return tree


def _invalid_json(problem: str) -> InvalidRequestError:
    """What is wrong and where, from the parser's "trailing comma at line 1 column 8"."""
    what, found, place = problem.rpartition(" at line ")
    line, _, column = place.partition(" column ")
    if not found or not line.isdigit() or not column.isdigit():
        what, line, column = "it cannot be read", "1", "0"
    return InvalidRequestError(
        f"The body is not valid JSON: {what} at line {line}, column {column}.", code="invalid_json"
    )


def parse_tree(
    kind: Kind,
    tree: dict[str, Any],
    settings: FieldSettings,
    schema: type[BaseModel] | None = None,
) -> ParsedRequest:
    """Validate a body that was read.

    Args:
        kind: Which API.
        tree: The body.
        settings: What becomes of unknown fields; bounds.
        schema: The body's, where it is not that of the API.

    Raises:
        InvalidRequestError: an unknown or refused field, a value out of bounds.
    """
    policy = FieldPolicy(settings)
    namespaces = flatten(tree) if kind == "response" else {}
    legacy_calls = tolerate(kind, tree, policy)
    try:
        model = (schema or SCHEMAS[kind]).model_validate(tree)
    except ValidationError as error:
        refusal = explain(error)
        raise in_older_words(refusal) if legacy_calls else refusal from None
    settle(model, policy)
    payload = model.model_dump(by_alias=True, exclude_unset=True, exclude_none=True)
    parsed = ParsedRequest(
        kind=kind,
        payload=payload,
        model=payload["model"],
        stream=bool(payload.get("stream")),
        wants_usage=bool((payload.get("stream_options") or {}).get("include_usage")),
        choices=payload.get("n", 1),
        max_tokens=_max_tokens(payload),
        text_chars=0,
        prefix="",
        dropped=policy.dropped,
        legacy_calls=legacy_calls,
        namespaces=namespaces,
    )
    _collect(parsed, settings)
    _check(parsed, settings)
    return parsed


def settle(model: BaseModel, policy: FieldPolicy, where: str = "") -> None:
    """Let the policy decide over unknown fields, here and in everything below."""
    extra = model.__pydantic_extra__
    if extra:
        policy.settle(extra, where)
        extra.clear()
    values = model.__dict__
    for name in model.model_fields_set:
        value = values.get(name)
        path = f"{where}.{name}" if where else name
        if isinstance(value, BaseModel):
            settle(value, policy, path)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    settle(item, policy, f"{path}[{index}]")


def _max_tokens(payload: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        value = payload.get(name)
        if isinstance(value, int):
            return value
    return None


def _parts(payload: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every piece of content with its place: texts, and parts of messages."""
    name = "messages" if "messages" in payload else "input"
    if isinstance(payload.get("instructions"), str):
        yield "instructions", payload["instructions"]
    if isinstance(payload.get("prompt"), str):
        yield "prompt", payload["prompt"]
    elif isinstance(payload.get("prompt"), list):
        for index, item in enumerate(payload["prompt"]):
            yield f"prompt[{index}]", item
    items = payload.get(name, ())
    if isinstance(items, str):
        yield name, items
        return
    for index, item in enumerate(items):
        key = "content" if "content" in item else "output"
        content = item.get(key)
        where = f"{name}[{index}].{key}"
        if isinstance(content, list):
            for place, part in enumerate(content):
                yield f"{where}[{place}]", part
        elif content is not None:
            yield where, content


def _collect(parsed: ParsedRequest, settings: FieldSettings) -> None:
    prefix: list[str] = []
    prefix_chars = 0
    whole_request = parsed.payload.pop("mm_processor_kwargs", None) or {}
    for where, part in _parts(parsed.payload):
        if isinstance(part, dict):
            document = document_in(part, where, len(parsed.images))
            if document is not None:
                document.bounds = _bounds(part, whole_request)
                parsed.documents.append(document)
            text = part.get("text") or part.get("refusal") or ""
            holder = part.get("image_url")
            if isinstance(holder, dict):  # chat
                detail = holder.get("detail") or "auto"
                bounds = _bounds(holder, part, whole_request)
                parsed.images.append(ImageRef(holder["url"], detail, f"{where}.image_url", *bounds))
                parsed._slots.append((holder, "url"))
            elif isinstance(holder, str):  # responses
                part.setdefault("detail", "auto")
                bounds = _bounds(part, whole_request)
                parsed.images.append(
                    ImageRef(holder, part["detail"], f"{where}.image_url", *bounds)
                )
                parsed._slots.append((part, "image_url"))
        elif isinstance(part, str):
            text = part
        else:  # token ids
            count = len(part) if isinstance(part, list) else 1
            parsed.text_chars += 4 * count
            continue
        parsed.text_chars += len(text)
        if prefix_chars < 512:
            prefix.append(text[: 512 - prefix_chars])
            prefix_chars += len(prefix[-1])
    parsed.prefix = "\x00".join(prefix)


def _bounds(*holders: dict[str, Any]) -> tuple[int | None, int | None]:
    """An image's own bounds in pixels, or the request's; taken out of what is forwarded."""
    found = [
        [value for holder in holders if (value := holder.get(name)) is not None]
        for name in ("min_pixels", "max_pixels")
    ]
    for holder in holders[:-1]:
        holder.pop("min_pixels", None)
        holder.pop("max_pixels", None)
    least, most = (values[0] if values else None for values in found)
    if least is not None and most is not None and least > most:
        raise InvalidRequestError(
            f"min_pixels {least} is above max_pixels {most}.", param="max_pixels"
        )
    return least, most


def _too_large(param: str, limit: int, what: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"'{param}' exceeds the limit of {limit} {what}.", param=param, code="limit_exceeded"
    )


def _check(parsed: ParsedRequest, settings: FieldSettings) -> None:
    """Bounds that the configuration sets."""
    payload = parsed.payload
    if parsed.choices > settings.max_n:
        raise _too_large("n", settings.max_n, "choices")
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens"):
        if payload.get(name, 0) > settings.max_tokens:
            raise _too_large(name, settings.max_tokens, "tokens")
    for name in ("top_logprobs", "prompt_logprobs", "logprobs"):
        value = payload.get(name, 0)
        if not isinstance(value, bool) and value > settings.max_top_logprobs:
            raise _too_large(name, settings.max_top_logprobs, "log-probabilities")
    if payload.get("top_logprobs") and parsed.kind == "chat" and not payload.get("logprobs"):
        raise InvalidRequestError(
            "'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs"
        )
    stop = payload.get("stop")
    if isinstance(stop, list) and len(stop) > settings.max_stop:
        raise _too_large("stop", settings.max_stop, "sequences")
    if len(payload.get("messages", ())) > settings.max_messages:
        raise _too_large("messages", settings.max_messages, "messages")
    if isinstance(payload.get("input"), list) and len(payload["input"]) > settings.max_messages:
        raise _too_large("input", settings.max_messages, "items")
    if parsed.text_chars > settings.max_text_chars:
        raise _too_large(
            "prompt" if parsed.kind == "completion" else "messages",
            settings.max_text_chars,
            "characters",
        )
    tools = payload.get("tools", ())
    if len(tools) > settings.max_tools:
        raise _too_large("tools", settings.max_tools, "tools")
    for name in ("tools", "response_format", "structured_outputs", "text"):
        if name in payload and len(to_json(payload[name])) > settings.max_schema_chars:
            raise _too_large(name, settings.max_schema_chars, "characters")
    prompt = payload.get("prompt")
    if isinstance(prompt, list):
        if isinstance(prompt[0], (str, list)) and len(prompt) > settings.max_prompts:
            raise _too_large("prompt", settings.max_prompts, "prompts")
        flat = [prompt] if isinstance(prompt[0], int) else prompt
        for ids in flat:
            if isinstance(ids, list) and max(ids) > settings.max_token_id:
                raise _too_large("prompt", settings.max_token_id, "as a token id")
    if "tool_choice" in payload and not tools:
        if payload["tool_choice"] in ("none", "auto"):
            del payload["tool_choice"]
        else:
            raise InvalidRequestError("'tool_choice' needs 'tools'.", param="tool_choice")
    for name in ("modalities", "best_of"):
        payload.pop(name, None)
