"""A record of administrative acts: who did what to keys and settings, and when."""

from __future__ import annotations

import getpass
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vora_core.errors import ConfigError

logger = logging.getLogger("vora_serve.gateway.audit")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


class AuditLog:
    """Appends one JSON line for each act to a file, and to the log. Never holds a key or a hash.

    Args:
        path: The file, made readable for its owner alone; only the log where absent.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def require_writable(self) -> None:
        """See that acts can be recorded.

        Raises:
            ConfigError
        """
        if self._path is not None:
            self._append(b"", self._path)

    def record(self, act: str, **fields: Any) -> None:
        """Record an act.

        Args:
            act: Such as ``key.revoked``.
            fields: What it was done to.

        Raises:
            ConfigError: the file cannot be written.
        """
        logger.info("audit %s", act, extra={"fields": fields})
        if self._path is None:
            return
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "act": act,
            "user": _user(),
            "pid": os.getpid(),
            **fields,
        }
        self._append(json.dumps(line, ensure_ascii=False).encode() + b"\n", self._path)

    @staticmethod
    def _append(line: bytes, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, line)  # one write: lines of several processes do not mix
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ConfigError(
                f"The audit log {path} cannot be written: {error.strerror}."
            ) from None
