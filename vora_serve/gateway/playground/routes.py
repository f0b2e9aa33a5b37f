"""The playground's pages: files of this package, and one look at an image.

Everything comes from this origin, and the policy below lets the browser run nothing else: no inline
script or style, no string that becomes code or markup, no image from elsewhere. Images by URL
are therefore fetched by the gateway, under the rules that hold for requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response

from vora_core.errors import InvalidRequestError, NotFoundError
from vora_core.image_files import TAKEN
from vora_serve.gateway.body import check_media_type, read_body
from vora_serve.gateway.context import SCOPE_KEY
from vora_serve.gateway.images.loader import ImageRef
from vora_serve.gateway.metrics import CONTENT_TYPE
from vora_serve.gateway.playground.card import NOTHING, describe_card
from vora_serve.gateway.playground.explain import ask_about, how_to_explain, look_into
from vora_serve.gateway.settings import ImageSettings, Settings
from vora_serve.gateway.state import GatewayState

PREFIX = "/playground/"
OPERATE = "/operate"
DOCS = "/docs"
#: What the API's reference page needs where the playground is switched off.
_DOCS_FILES = frozenset(("docs.js", "api.js", "dom.js", "style.css", "icon.svg"))
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-cache",
}
_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml", ".css": "text/css"}


class ImageRequest(BaseModel):
    """An image to look at: where it is."""

    model_config = ConfigDict(extra="forbid")
    url: str = Field(min_length=1)


@lru_cache(maxsize=1)
def _files() -> dict[str, tuple[bytes, str, str]]:
    """Path under the prefix to content, media type and entity tag; read once."""
    found: dict[str, tuple[bytes, str, str]] = {}

    def walk(folder: Any, path: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                walk(entry, f"{path}{entry.name}/")
            elif not entry.name.endswith(".md"):
                content = entry.read_bytes()
                suffix = "." + entry.name.rsplit(".", 1)[-1]
                kind = _TYPES.get(suffix) or mimetypes.guess_type(entry.name)[0] or "text/plain"
                tag = '"' + hashlib.sha256(content).hexdigest()[:32] + '"'
                found[path + entry.name] = (content, kind, tag)

    walk(resources.files("vora_serve.gateway.playground") / "static", "")
    return found


def _served(settings: Settings) -> list[str]:
    """Names of the files that these settings serve."""
    if settings.playground.enabled:
        return list(_files())
    return [name for name in _files() if settings.server.docs and name in _DOCS_FILES]


def public_paths(settings: Settings) -> frozenset[str]:
    """Paths that ask for no key: the page has to load before somebody can type one."""
    paths = {PREFIX + name for name in _served(settings)}
    if settings.playground.enabled:
        paths |= {PREFIX + "settings.json", *([OPERATE] if settings.playground.operate else [])}
    return frozenset(paths)


def _static(name: str, request: Request) -> Response:
    content, kind, tag = _files()[name]
    headers = {**_HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)


def _add_page(app: FastAPI, path: str, name: str) -> None:
    async def page(request: Request) -> Response:
        return _static(name, request)

    app.add_route(path, page, methods=["GET"], include_in_schema=False)


def add_playground(app: FastAPI, state: GatewayState) -> None:
    """Add the pages at ``/``, ``/operate`` and ``/docs`` with what they need, where switched on."""
    settings = state.settings
    if settings.server.docs:
        _add_page(app, DOCS, "docs.html")
    for name in _served(settings):
        _add_page(app, PREFIX + name, name)
    if not settings.playground.enabled:
        return
    _add_page(app, "/", "index.html")
    if settings.playground.operate:
        _add_operate(app, state)

    async def page_settings(_: Request) -> Response:
        own = settings.playground
        return JSONResponse(
            {
                "keys_needed": not state.keys.open,
                "limits": _image_limits(settings.images),
                "detail_pixels": dict(settings.images.detail_pixels),
                "fetch": settings.images.fetch,
                "price_per_million_input_tokens": own.price_per_million_input_tokens,
                "price_per_million_output_tokens": own.price_per_million_output_tokens,
                "currency": own.currency,
                "explain": how_to_explain(settings),
            },
            headers=_HEADERS,
        )

    async def image(request: Request) -> Response:
        return JSONResponse(await _look(request, state), headers=_HEADERS)

    async def explain(request: Request) -> Response:
        with state.bodies.share() as share:
            body = await _body(request, state, share)
            asked = await asyncio.to_thread(ask_about, body)
            _model_card(asked.model, request, state)
            answer, status = await look_into(settings, body)
        return Response(answer, status, _HEADERS, "application/json")

    async def about(request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(_about, request, state), headers=_HEADERS)

    app.add_route(PREFIX + "about", about, methods=["GET"], include_in_schema=False)
    app.add_route(PREFIX + "settings.json", page_settings, methods=["GET"], include_in_schema=False)
    app.add_route(PREFIX + "image", image, methods=["POST"], include_in_schema=False)
    if settings.playground.explain_url is not None:
        app.add_route(PREFIX + "explain", explain, methods=["POST"], include_in_schema=False)


def _add_operate(app: FastAPI, state: GatewayState) -> None:
    """The operator's page, which anybody may load, and its numbers, which ask for their scope."""

    def metrics(_: Request) -> Response:  # in a thread, as at /metrics
        return Response(state.render_metrics(), media_type=CONTENT_TYPE, headers=_HEADERS)

    _add_page(app, OPERATE, "operate.html")
    app.add_route(OPERATE + "/metrics", metrics, methods=["GET"], include_in_schema=False)


def _image_limits(images: ImageSettings) -> dict[str, Any]:
    """The rules for images that a client can check before it sends them."""
    names = [name.lower() for name in TAKEN if name != "HEIF" or find_spec("pillow_heif")]
    fields = (
        "max_count",
        "max_bytes",
        "max_total_bytes",
        "max_pixels",
        "max_total_pixels",
        "min_side_pixels",
        "max_aspect_ratio",
    )
    return {"formats": names, **{name: getattr(images, name) for name in fields}}


def _about(request: Request, state: GatewayState) -> dict[str, Any]:
    """What the card of a model that this key may use says of it."""
    name = request.query_params.get("model", "")
    card = _model_card(name, request, state)
    root = state.settings.playground.checkpoints.get(name) or card.get("root")
    return describe_card(root) if isinstance(root, str) else NOTHING


def _model_card(name: str, request: Request, state: GatewayState) -> dict[str, Any]:
    """What an engine says of a model that this key may use.

    Raises:
        NotFoundError: there is none.
    """
    allowed = request.scope[SCOPE_KEY].key.models
    card = state.balancer.models().get(name)
    if card is None or (allowed is not None and name not in allowed):
        raise NotFoundError("The model does not exist here.", param="model", code="model_not_found")
    return card


async def _body(request: Request, state: GatewayState, share: Any) -> bytes:
    check_media_type(request.scope)
    limits = state.settings.server
    body = await read_body(
        request.scope, request.receive, share, limits.max_body_bytes, limits.body_timeout_s
    )
    context = request.scope[SCOPE_KEY]
    caller = context.key.name if not state.keys.open else context.client
    await state.limits.take_request(caller, context.key.requests)
    return body


async def _look(request: Request, state: GatewayState) -> dict[str, str]:
    """The image as the engine would get it: fetched, checked, upright, as a ``data:`` URL."""
    with state.bodies.share() as share:
        body = await _body(request, state, share)
        try:
            asked = ImageRequest.model_validate_json(body)
        except ValidationError:
            raise InvalidRequestError(
                'The body must be {"url": "…"} with an image\'s URL.', param="url"
            ) from None
        loaded = await state.images.load([ImageRef(asked.url, "auto", "url")], share)
        return {"url": loaded.urls[0]}
