"""API keys: kept as hashes in a file that is read again when it changes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from vora_core import typed_yaml
from vora_core.errors import AuthenticationError, ConfigError
from vora_serve.gateway.audit import AuditLog
from vora_serve.gateway.settings import PositiveInt, Section

logger = logging.getLogger("vora_serve.gateway.keys")

Scope = Literal["generate", "models", "metrics", "admin"]

KEY_PREFIX = "vora-"
_DEFAULT_SCOPES: tuple[Scope, ...] = ("generate", "models")


class ApiKey(Section):
    """One key: who it belongs to, and what it may do."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """The label in logs and metrics."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    group: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    """Keys of one group are one tenant: they share cached prefixes, turns and budgets."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """The tenant's share under overload, relative to others'."""
    scopes: list[Scope] = Field(default_factory=lambda: list(_DEFAULT_SCOPES))
    models: list[str] | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    max_in_flight: PositiveInt | None = None
    max_queued: Annotated[int, Field(ge=0)] | None = None
    requests: list[str] | None = None
    """Rate limits instead of the common ones."""
    tokens: list[str] | None = None
    budgets: dict[Literal["day", "month"], PositiveInt] | None = None
    """The tenant's tokens in a day and a month, instead of the common ones."""
    expires: datetime | None = None
    revoked: bool = False

    @field_validator("expires")
    @classmethod
    def _with_zone(cls, value: datetime | None) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value

    @property
    def tenant(self) -> str:
        """Whose data, turns and budgets these are; no key's name equals any group's."""
        return f"group:{self.group}" if self.group is not None else f"key:{self.name}"

    @cached_property
    def cache_salt(self) -> str:
        """What separates this tenant's prefixes in an engine's cache from all others'.

        The same in every gateway, so that engines find a prefix again whoever forwards it.
        """
        return hashlib.sha256(f"vora-serve cache salt\0{self.tenant}".encode()).hexdigest()[:32]

    def may(self, scope: Scope) -> bool:
        """Whether the key has the scope."""
        return scope in self.scopes


class _KeyFile(Section):
    keys: list[ApiKey]


ANONYMOUS = ApiKey(name="anonymous", sha256="0" * 64, scopes=["generate", "models", "metrics"])


def hash_key(key: str) -> str:
    """SHA-256 in hex; a slow hash would add nothing, as keys are 256 random bits."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new_key() -> str:
    """A fresh random key."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def read_keys(path: Path) -> list[ApiKey]:
    """The keys in a YAML file.

    Raises:
        ConfigError: unreadable, malformed, or a name or hash occurs twice.
    """
    keys = typed_yaml.load(_KeyFile, path, subject="key file").keys
    for attribute in ("name", "sha256"):
        if len({getattr(key, attribute) for key in keys}) != len(keys):
            raise ConfigError(f"The key file {path} has the same {attribute} twice.")
    return keys


def _values(key: ApiKey) -> dict[str, object]:
    return key.model_dump()


class KeyRing:
    """The keys in force.

    Args:
        path: The file; without one everybody is :data:`ANONYMOUS`.
        audit: Where changes of the file are recorded once they are in force.
        required: Whether callers authenticate even without a file, by tokens.
    """

    def __init__(
        self, path: Path | None, audit: AuditLog | None = None, required: bool = False
    ) -> None:
        self._required = required or path is not None
        self._path = path
        self._audit = audit if audit is not None else AuditLog(None)
        self._pepper = secrets.token_bytes(32)
        self._stamp: tuple[int, int] | None = None
        self._keys: Mapping[bytes, ApiKey] = {}
        if path is not None:
            self._stamp = self._read_stamp(path)
            self._keys = self._index(read_keys(path))

    @property
    def open(self) -> bool:
        """Whether no key is asked for."""
        return not self._required

    @staticmethod
    def _read_stamp(path: Path) -> tuple[int, int] | None:
        try:
            status = path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size

    def _peppered(self, digest: str) -> bytes:
        return hmac.digest(self._pepper, digest.encode("ascii"), "sha256")

    def _index(self, keys: list[ApiKey]) -> Mapping[bytes, ApiKey]:
        return {self._peppered(key.sha256): key for key in keys}

    def authenticate(self, authorization: str | None) -> ApiKey:
        """The key behind an ``Authorization: Bearer`` header.

        The look-up goes by an HMAC under a secret of this process, so that its time reveals nothing
        about the hashes that the file holds.

        Raises:
            AuthenticationError: none given, unknown, or expired.
        """
        if self.open:
            return ANONYMOUS
        match = re.fullmatch(r"(?i:bearer) +([\x21-\x7e]{1,512}) *", authorization or "")
        if match is None:
            raise AuthenticationError(
                "An API key is needed: 'Authorization: Bearer KEY'.",
                headers={"www-authenticate": "Bearer"},
            )
        presented = self._peppered(hash_key(match[1]))
        key = self._keys.get(presented)
        expected = self._peppered(key.sha256) if key is not None else bytes(32)
        if not hmac.compare_digest(presented, expected) or key is None:
            raise AuthenticationError(
                "The API key is not valid.", headers={"www-authenticate": "Bearer"}
            )
        if key.revoked:
            raise AuthenticationError(
                "The API key has been revoked.", headers={"www-authenticate": "Bearer"}
            )
        if key.expires is not None and datetime.now(UTC) >= key.expires:
            raise AuthenticationError(
                "The API key has expired.", headers={"www-authenticate": "Bearer"}
            )
        return key

    def current(self, kept: ApiKey) -> ApiKey | None:
        """What a key that was valid once is now; None where it may not generate any more.

        Accepted work keeps the rights of its token after the token has expired.
        """
        if self.open:
            return kept
        if kept.sha256 == ANONYMOUS.sha256:
            return kept if kept.name != ANONYMOUS.name else None
        key = self._keys.get(self._peppered(kept.sha256))
        if key is None or key.revoked or not key.may("generate") or key.tenant != kept.tenant:
            return None
        return None if key.expires is not None and datetime.now(UTC) >= key.expires else key

    def reload(self) -> bool:
        """Read the file again if it changed; a broken file leaves the keys as they are."""
        if self._path is None:
            return False
        stamp = self._read_stamp(self._path)
        if stamp is None or stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            keys = self._index(read_keys(self._path))
        except ConfigError as error:
            logger.error("keys not reloaded: %s", error)
            return False
        old = {key.name: key for key in self._keys.values()}
        self._keys = keys
        logger.info("keys reloaded: %d", len(self._keys))
        self._record_changes(old, {key.name: key for key in keys.values()})
        return True

    def _record_changes(self, old: Mapping[str, ApiKey], new: Mapping[str, ApiKey]) -> None:
        changes = {
            "added": sorted(new.keys() - old.keys()),
            "removed": sorted(old.keys() - new.keys()),
            "changed": sorted(
                name for name in new.keys() & old.keys() if _values(new[name]) != _values(old[name])
            ),
        }
        try:
            self._audit.record("keys.reloaded", **changes)
        except ConfigError as error:  # the keys are in force all the same
            logger.error("%s", error)

    async def watch(self, interval_s: float) -> None:
        """Reload whenever the file changes, until cancelled."""
        while self._path is not None:
            await asyncio.sleep(interval_s)
            self.reload()
