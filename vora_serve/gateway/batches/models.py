"""Files and batches as they are stored, and as OpenAI's API shows them."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
#: Those of batches that are over.
FINAL: tuple[Status, ...] = ("failed", "completed", "expired", "cancelled")

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]

#: Of files that batches write.
OUTPUT_PURPOSE = "batch_output"


def new_id(kind: str) -> str:
    """A fresh random id, such as ``file-...``."""
    return kind + secrets.token_hex(12)


@dataclass(frozen=True)
class StoredFile:
    """A file. Times are seconds since the epoch."""

    id: str
    tenant: str
    purpose: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int | None

    def shown(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


@dataclass
class StoredBatch:
    """A batch.

    Attributes:
        key: Whose it is: the API key's entry as JSON, without the key itself.
        times: Of each status, by names such as ``completed_at``.
        output_id, error_id: Of the files that are being written; shown once they are complete.
        output_bytes: Written to both so far.
        output_seconds: How long these files are kept; as the settings say where None.
    """

    id: str
    tenant: str
    key: dict[str, Any]
    endpoint: str
    input_file_id: str
    status: Status
    created_at: int
    expires_at: int
    output_id: str
    error_id: str
    metadata: dict[str, str] | None = None
    output_seconds: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_bytes: int = 0
    times: dict[str, int] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    shows_output: bool = False
    shows_errors: bool = False

    def shown(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        times = (
            "in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at",
            "cancelling_at", "cancelled_at",
        )  # fmt: skip
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_id if self.shows_output else None,
            "error_file_id": self.error_id if self.shows_errors else None,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            **{name: self.times.get(name) for name in times},
            "request_counts": {
                "total": self.total,
                "completed": self.completed,
                "failed": self.failed,
            },
            "metadata": self.metadata,
        }

    def row(self) -> dict[str, Any]:
        """Its columns."""
        values = dict(self.__dict__)
        for name in _JSON:
            values[name] = json.dumps(values[name])
        return values

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> StoredBatch:
        """From its columns."""
        values = dict(row)
        for name in _JSON:
            values[name] = json.loads(values[name])
        return cls(**values)


_JSON = ("key", "metadata", "times", "errors")
