"""The listening socket, and who may be let near it."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from pathlib import Path

from vora_core.errors import ConfigError
from vora_serve.gateway.settings import Settings


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(settings: Settings) -> None:
    """Refuse to serve other machines without keys, unless the settings allow it.

    Raises:
        ConfigError
    """
    auth = settings.auth
    if (
        auth.keys_file is None
        and auth.jwt is None
        and not auth.allow_anonymous
        and not is_loopback(settings.server.host)
    ):
        raise ConfigError(
            f"Serving on {settings.server.host} without API keys would be open to everybody: "
            "give a key file (auth.keys_file), or set auth.allow_anonymous (--allow-anonymous)."
        )


def bind(host: str, port: int, backlog: int = 2048) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the address is not this machine's, or the port is in use or reserved.
    """
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError):
        raise ConfigError(f"The host {host} is not an address of this machine.") from None
    listener = socket.socket(info[0], socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(info[4])
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"The port {port} on {host} is in use.") from None
        if error.errno == errno.EACCES:
            raise ConfigError(f"The port {port} may not be used by this user.") from None
        raise ConfigError(f"The host {host} is not an address of this machine.") from None
    listener.setblocking(False)
    return listener


def bind_unix(path: Path, backlog: int = 64) -> socket.socket:
    """A listening Unix socket, open to this user only where its folder is.

    A socket that a killed process left behind is replaced.

    Raises:
        ConfigError: the path cannot be used, is another kind of file, or somebody listens there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with (
                contextlib.suppress(ConnectionRefusedError),
                socket.socket(socket.AF_UNIX) as probe,
            ):
                probe.connect(str(path))
                raise ConfigError(f"Another process listens on {path}.")
            path.unlink()
        listener.bind(str(path))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{path} cannot be used as a socket: {error.strerror or error}."
        ) from None
    except ConfigError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
