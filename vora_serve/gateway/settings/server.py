"""The settings of the gateway's own side: listening, and streaming to clients."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vora_serve.gateway.settings.types import Cidr, PositiveInt, Seconds, Section


class ServerSettings(Section):
    """The listening socket, and what a client may send and how fast."""

    host: str = "127.0.0.1"
    """The address that is listened on. ``0.0.0.0`` lets other machines in, and then asks for
    keys."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """The TCP port; 0 takes any that is free."""
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Gateway processes. Raise it where one uses a whole core. Limits that are not shared through
    Redis hold for each of them."""
    backlog: PositiveInt = 2048
    """Connections that wait in the kernel to be accepted."""
    max_body_bytes: PositiveInt = 32 * 2**20
    """The largest request body, after decompression; larger ones get 413."""
    max_body_memory_bytes: PositiveInt = 96 * 2**20
    """Bytes of request bodies and images held at one time by a worker, all requests together."""
    body_timeout_s: Seconds = 30.0
    """A body that has not arrived in full by then is refused with 408."""
    keep_alive_s: Seconds = 75.0
    """An idle client connection is closed after so long. A proxy in front should close its own
    sooner."""
    drain_delay_s: Annotated[float, Field(ge=0)] = 0.0
    """After SIGTERM: how long ``/ready`` says no while requests are still taken."""
    grace_period_s: Seconds = 30.0
    """After SIGTERM: how long streams may go on before they are cut."""
    trusted_proxies: list[Cidr] = []
    """Peers whose ``X-Forwarded-For`` names the client; nobody by default."""
    cors_origins: list[str] = []
    """Origins whose pages may call this API from a browser; ``*`` means any. None by default."""
    docs: bool = True
    """Serve ``/docs`` and ``/openapi.json``."""


class StreamSettings(Section):
    """Streaming answers."""

    heartbeat_s: Annotated[float, Field(ge=0)] = 15.0
    """A comment line is sent when a stream was silent for so long; 0: never."""
    write_timeout_s: Seconds = 60.0
    """A client that takes nothing for so long is dropped."""
