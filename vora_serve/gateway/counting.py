"""Routes that count a prompt's tokens, images and all: the engine renders it, and runs nothing."""

from __future__ import annotations

from typing import Any

from starlette.types import Scope, Send

from vora_serve.gateway.context import SCOPE_KEY
from vora_serve.gateway.generation import GenerationResponse
from vora_serve.gateway.messages.route import Translator
from vora_serve.gateway.schemas import ParsedRequest
from vora_serve.gateway.schemas.counting import parse_input_tokens, parse_tokenize
from vora_serve.gateway.state import GatewayState


class TokenizeResponse(GenerationResponse):
    """``POST /tokenize``, as vLLM has it."""

    def __init__(self, state: GatewayState) -> None:
        super().__init__("chat", state)
        self._route = "/tokenize"
        self._engine_path = b"/tokenize"

    def _parse(self, body: bytes) -> ParsedRequest:
        return parse_tokenize(body, self._state.settings.fields)


class InputTokensResponse(GenerationResponse):
    """``POST /v1/responses/input_tokens``, as OpenAI has it."""

    def __init__(self, state: GatewayState) -> None:
        super().__init__("chat", state)
        self._route = "/v1/responses/input_tokens"
        self._engine_path = b"/tokenize"

    def _parse(self, body: bytes) -> ParsedRequest:
        return parse_input_tokens(body, self._state.settings.fields)

    def _sending(self, scope: Scope, send: Send) -> Send:
        return Translator(send, scope[SCOPE_KEY].request_id, _as_input_tokens)


def _as_input_tokens(answer: dict[str, Any]) -> dict[str, Any]:
    return {"object": "response.input_tokens", "input_tokens": int(answer["count"])}
