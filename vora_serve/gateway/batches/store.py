"""What is known of files and batches, in SQLite, and the files' contents, in a folder beside it.

Several gateway processes of one machine may share the folder. These functions block; the gateway
calls them in threads.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vora_core.errors import ConfigError, InvalidRequestError, NotFoundError, RequestTooLargeError
from vora_serve.gateway.batches.models import (
    FINAL,
    OUTPUT_PURPOSE,
    Status,
    StoredBatch,
    StoredFile,
)
from vora_serve.gateway.settings import BatchSettings

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, tenant TEXT, purpose TEXT, filename TEXT, bytes INTEGER,
    created_at INTEGER, expires_at INTEGER, ready INTEGER
);
CREATE INDEX IF NOT EXISTS files_of ON files (tenant);
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY, tenant TEXT, key TEXT, endpoint TEXT, input_file_id TEXT, status TEXT,
    created_at INTEGER, expires_at INTEGER, output_id TEXT, error_id TEXT, metadata TEXT,
    output_seconds INTEGER, total INTEGER, completed INTEGER, failed INTEGER,
    output_bytes INTEGER, times TEXT, errors TEXT, shows_output INTEGER, shows_errors INTEGER
);
CREATE INDEX IF NOT EXISTS batches_of ON batches (tenant);
"""
_FILE = "id, tenant, purpose, filename, bytes, created_at, expires_at"
_ABANDONED_S = 24 * 3600
_UNFINISHED = f"status NOT IN ({', '.join(repr(status) for status in FINAL)})"


def now() -> int:
    """Seconds since the epoch."""
    return int(time.time())


class Store:
    """The folder.

    Args:
        folder: Made where it does not exist.
        settings: How much it may hold.

    Raises:
        ConfigError: it cannot be written to.
    """

    def __init__(self, folder: Path, settings: BatchSettings) -> None:
        self._settings = settings
        self.folder = folder
        self._lock = threading.Lock()
        try:
            (folder / "files").mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._connection = sqlite3.connect(
                folder / "batches.sqlite", timeout=10, check_same_thread=False, isolation_level=None
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(
                f"The folder batches.folder, {folder}, cannot be used: {reason}."
            ) from None

    def close(self) -> None:
        """Close the database, once nobody is using it."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Alone among threads, and among processes once it writes."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        with self._lock:
            return [dict(row) for row in self._connection.execute(query, values)]

    # ------------------------------------------------------------------------------- files

    def path(self, file_id: str) -> Path:
        """Where a file's content is; ids are this module's own, never a caller's text."""
        return self.folder / "files" / file_id

    def reserve(self, file: StoredFile) -> None:
        """Count a file in before it is written, with the bytes that it may have at most.

        Raises:
            RequestTooLargeError: no room for it.
            InvalidRequestError: its tenant has too many files.
        """
        with self.transaction() as connection:
            self._require_room(connection, file.tenant, file.bytes)
            (count,) = connection.execute(
                "SELECT count(*) FROM files WHERE tenant = ?", (file.tenant,)
            ).fetchone()
            if count >= self._settings.max_files_per_tenant:
                raise InvalidRequestError(
                    f"There are {count} files, the limit batches.max_files_per_tenant; "
                    "delete some first.",
                    code="too_many_files",
                )
            self._insert(connection, file, ready=False)

    def complete(self, file: StoredFile) -> None:
        """A reserved file has been written; its size is known."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM files WHERE id = ?", (file.id,))
            self._insert(connection, file, ready=True)

    @staticmethod
    def _insert(connection: sqlite3.Connection, file: StoredFile, *, ready: bool) -> None:
        connection.execute(
            f"INSERT INTO files ({_FILE}, ready) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(file.id, file.tenant, file.purpose, file.filename, file.bytes),
                *(file.created_at, file.expires_at, ready),
            ),
        )

    def _require_room(self, connection: sqlite3.Connection, tenant: str, size: int) -> None:
        for where, most, name in (
            ("tenant = ?1", self._settings.max_bytes_per_tenant, "max_bytes_per_tenant"),
            ("?1 = ?1", self._settings.max_bytes, "max_bytes"),
        ):
            (held,) = connection.execute(
                f"SELECT coalesce((SELECT sum(bytes) FROM files WHERE {where}), 0) + coalesce("
                f"(SELECT sum(output_bytes) FROM batches WHERE {where} AND {_UNFINISHED}), 0)",
                (tenant,),
            ).fetchone()
            if held + size > most:
                raise RequestTooLargeError(
                    f"The file exceeds what is left of the limit batches.{name}, {most} bytes.",
                    code="storage_full",
                )

    def discard(self, file_id: str) -> None:
        """Forget a file and remove its content."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM files WHERE id = ?", (file_id,))
        self.path(file_id).unlink(missing_ok=True)

    def file(self, tenant: str, file_id: str) -> StoredFile:
        """One of a tenant's files.

        Raises:
            NotFoundError: the tenant has no such file, or it has expired.
        """
        rows = self._rows(
            f"SELECT {_FILE} FROM files WHERE id = ? AND tenant = ? AND ready "
            "AND (expires_at IS NULL OR expires_at > ?)",
            (file_id, tenant, now()),
        )
        if not rows:
            raise NotFoundError("There is no such file.", param="file_id", code="file_not_found")
        return StoredFile(**rows[0])

    def files(self, tenant: str) -> list[StoredFile]:
        """All of a tenant's files, the oldest first."""
        rows = self._rows(
            f"SELECT {_FILE} FROM files WHERE tenant = ? AND ready "
            "AND (expires_at IS NULL OR expires_at > ?) ORDER BY created_at, rowid",
            (tenant, now()),
        )
        return [StoredFile(**row) for row in rows]

    def delete(self, tenant: str, file_id: str) -> None:
        """Delete one of a tenant's files.

        Raises:
            NotFoundError: the tenant has no such file.
            InvalidRequestError: a batch is still reading it.
        """
        self.file(tenant, file_id)
        used = self._rows(
            f"SELECT id FROM batches WHERE input_file_id = ? AND {_UNFINISHED}", (file_id,)
        )
        if used:
            raise InvalidRequestError(
                f"The batch {used[0]['id']} still reads this file; cancel it first.",
                param="file_id",
                code="file_in_use",
            )
        self.discard(file_id)

    # ----------------------------------------------------------------------------- batches

    def add(self, batch: StoredBatch) -> None:
        """Keep a new batch.

        Raises:
            InvalidRequestError: its tenant has too many unfinished ones.
        """
        row = batch.row()
        with self.transaction() as connection:
            (count,) = connection.execute(
                f"SELECT count(*) FROM batches WHERE tenant = ? AND {_UNFINISHED}", (batch.tenant,)
            ).fetchone()
            if count >= self._settings.max_batches_per_tenant:
                raise InvalidRequestError(
                    f"There are {count} unfinished batches, the limit "
                    "batches.max_batches_per_tenant.",
                    code="too_many_batches",
                )
            names = ", ".join(row)
            marks = ", ".join(f":{name}" for name in row)
            connection.execute(f"INSERT INTO batches ({names}) VALUES ({marks})", row)
            connection.execute(
                f"DELETE FROM batches WHERE tenant = ?1 AND NOT ({_UNFINISHED}) AND rowid NOT IN ("
                f"SELECT rowid FROM batches WHERE tenant = ?1 AND NOT ({_UNFINISHED}) "
                "ORDER BY rowid DESC LIMIT ?2)",
                (batch.tenant, self._settings.max_ended_batches_per_tenant),
            )

    def batch(self, tenant: str, batch_id: str) -> StoredBatch:
        """One of a tenant's batches.

        Raises:
            NotFoundError: the tenant has no such batch.
        """
        rows = self._rows("SELECT * FROM batches WHERE id = ? AND tenant = ?", (batch_id, tenant))
        if not rows:
            raise NotFoundError("There is no such batch.", param="batch_id", code="batch_not_found")
        return StoredBatch.of_row(rows[0])

    def batches(self, tenant: str) -> list[StoredBatch]:
        """All of a tenant's batches, the newest first."""
        rows = self._rows(
            "SELECT * FROM batches WHERE tenant = ? ORDER BY created_at DESC, rowid DESC", (tenant,)
        )
        return [StoredBatch.of_row(row) for row in rows]

    def unfinished(self) -> list[StoredBatch]:
        """Of all tenants, the oldest first."""
        rows = self._rows(f"SELECT * FROM batches WHERE {_UNFINISHED} ORDER BY created_at, rowid")
        return [StoredBatch.of_row(row) for row in rows]

    def move(self, batch_id: str, to: Status, *since: Status, **changes: Any) -> bool:
        """Give a batch another status, if it has one of those named; whether it did."""
        values = {
            name: json.dumps(value) if name == "errors" else value
            for name, value in changes.items()
        }
        sets = "".join(f", {name} = :{name}" for name in values)
        marks = ", ".join(repr(status) for status in since)
        with self.transaction() as connection:
            cursor = connection.execute(
                f"UPDATE batches SET status = :to, times = json_set(times, '$.{to}_at', :now)"
                f"{sets} WHERE id = :id AND status IN ({marks})",
                {**values, "to": to, "now": now(), "id": batch_id},
            )
        return cursor.rowcount > 0

    def record(self, batch: StoredBatch) -> None:
        """Keep how far a batch has come."""
        with self.transaction() as connection:
            connection.execute(
                "UPDATE batches SET completed = ?, failed = ?, output_bytes = ? WHERE id = ?",
                (batch.completed, batch.failed, batch.output_bytes, batch.id),
            )

    def finish(self, batch: StoredBatch, to: Status) -> None:
        """End a batch: its files and its last status appear at once."""
        seconds = batch.output_seconds or self._settings.keep_s
        changes = {"completed": batch.completed, "failed": batch.failed, "output_bytes": 0}
        for file_id, column, kind in (
            (batch.output_id, "shows_output", "output"),
            (batch.error_id, "shows_errors", "error"),
        ):
            path = self.path(file_id)
            size = path.stat().st_size if path.exists() else 0
            if not size:
                path.unlink(missing_ok=True)
                continue
            changes[column] = 1
            name = f"{batch.id}_{kind}.jsonl"
            self.complete(
                StoredFile(
                    file_id, batch.tenant, OUTPUT_PURPOSE, name, size, now(), now() + int(seconds)
                )
            )
        since: tuple[Status, ...] = ("validating", "in_progress", "finalizing", "cancelling")
        self.move(batch.id, to, *since, **changes, errors=batch.errors)

    def has_room(self, tenant: str, size: int) -> bool:
        """Whether a batch may write so many bytes more."""
        try:
            with self.transaction() as connection:
                self._require_room(connection, tenant, size)
        except RequestTooLargeError:
            return False
        return True

    # ---------------------------------------------------------------------------- upkeep

    def sweep(self) -> None:
        """Remove what has expired, and what a process that ended left half written."""
        reading = "SELECT input_file_id FROM batches WHERE " + _UNFINISHED
        old = self._rows(
            f"SELECT id FROM files WHERE (expires_at <= ? OR (NOT ready AND created_at <= ?)) "
            f"AND id NOT IN ({reading})",
            (now(), now() - _ABANDONED_S),
        )
        for row in old:
            self.discard(row["id"])
        with self.transaction() as connection:
            connection.execute(
                f"DELETE FROM batches WHERE NOT ({_UNFINISHED}) AND created_at <= ?",
                (now() - int(self._settings.keep_s),),
            )
        known = {row["id"] for row in self._rows("SELECT id FROM files")}
        for batch in self.unfinished():
            known |= {batch.output_id, batch.error_id}
        for path in (self.folder / "files").iterdir():
            if path.name not in known and path.stat().st_mtime <= now() - _ABANDONED_S:
                path.unlink(missing_ok=True)

    def totals(self) -> tuple[dict[str, int], int]:
        """Batches by status, and bytes of all files."""
        counts = self._rows("SELECT status, count(*) AS n FROM batches GROUP BY status")
        held = self._rows("SELECT coalesce(sum(bytes), 0) AS n FROM files")
        return {row["status"]: row["n"] for row in counts}, held[0]["n"]
