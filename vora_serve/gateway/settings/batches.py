"""The settings of work that nobody waits for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from vora_serve.gateway.settings.types import PositiveInt, Seconds, Section


class BatchSettings(Section):
    """``/v1/files`` and ``/v1/batches``; off without a folder."""

    folder: Path | None = None
    """Where files and batches are kept, on a disk that outlasts the process. Gateway processes of
    one machine may share it; one of them runs the batches."""
    max_in_flight: PositiveInt = 8
    """Requests of batches in flight at one time; for each online request in flight, one fewer."""
    max_file_bytes: PositiveInt = 200 * 2**20
    """The largest file that may be uploaded. More lets one upload take more of the disk."""
    max_bytes_per_tenant: PositiveInt = 2 * 2**30
    """Bytes of files that a tenant may keep; further uploads are refused until some are deleted."""
    max_bytes: PositiveInt = 20 * 2**30
    """On disk, files of all tenants together."""
    max_files_per_tenant: PositiveInt = 1000
    """Files that a tenant may keep; further uploads are refused until some are deleted."""
    max_batches_per_tenant: PositiveInt = 50
    """That have not ended."""
    max_ended_batches_per_tenant: PositiveInt = 1000
    """The oldest beyond these are forgotten; their files stay for as long as files do."""
    max_requests: PositiveInt = 50_000
    """In one batch."""
    keep_s: Seconds = 30 * 24 * 3600.0
    """Files and ended batches are removed after so long."""
    window_s: Annotated[float, Field(gt=0, le=7 * 24 * 3600)] = 24 * 3600.0
    """A batch that has not ended by then expires, with the answers that it has."""
    max_attempts: PositiveInt = 3
    """For a request that an engine breaks off or does not finish. Where there is no engine, or a
    rate limit is reached, a batch waits."""
    max_body_memory_bytes: PositiveInt = 96 * 2**20
    """As ``server.max_body_memory_bytes``, for requests of batches: they take none of that."""
