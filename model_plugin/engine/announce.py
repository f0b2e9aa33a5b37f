"""The server's model cards, with what clients need to send images that are ready.

A pure ASGI middleware for vLLM's ``--middleware``: it adds one entry to each card of
``GET /v1/models`` and touches nothing else.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict
from typing import Any

from model_plugin.engine.adapters.registry import registry
from vora_core.ready_pixels import ANNOUNCEMENT

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class AnnounceImages:
    """Adds the image settings to model cards.

    Args:
        app: the next layer.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._settings: dict[str, Any] | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http" or scope["path"] != "/v1/models":
            await self._app(scope, receive, send)
            return
        start: Message = {}
        body = b""

        async def gather(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            sent = self._with_settings(body, scope) if start["status"] == 200 else body
            headers = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
            headers.append((b"content-length", str(len(sent)).encode()))
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": sent})

        await self._app(scope, receive, gather)

    def _with_settings(self, body: bytes, scope: Message) -> bytes:
        adapters = registry()
        if self._settings is None and adapters is None:
            self._settings = image_settings(scope["app"].state.vllm_config.model_config)
        if not self._settings and adapters is None:
            return body
        answer = json.loads(body)
        for card in answer["data"]:
            adapter = adapters.loaded.get(card["id"]) if adapters is not None else None
            if adapter is not None:
                card[ANNOUNCEMENT] = asdict(adapter.settings)
            elif adapters is None:
                card[ANNOUNCEMENT] = self._settings
        return json.dumps(answer).encode()


def image_settings(model_config: Any) -> dict[str, Any]:
    """The image settings that the server applies; empty for a model that takes no ready pixels."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    from model_plugin.engine.processing import VoRAProcessingInfo

    if not model_config.is_multimodal_model:
        return {}
    info = MULTIMODAL_REGISTRY.get_processing_info(model_config)
    return asdict(info.settings()) if isinstance(info, VoRAProcessingInfo) else {}
