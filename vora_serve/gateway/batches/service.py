"""What the routes of files and batches do."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from starlette.types import Receive, Scope

from vora_core.errors import InvalidRequestError, NotFoundError
from vora_serve.gateway.admission import ApiKey
from vora_serve.gateway.batches.models import (
    FINAL,
    Endpoint,
    StoredBatch,
    StoredFile,
    new_id,
)
from vora_serve.gateway.batches.runner import BatchRunner
from vora_serve.gateway.batches.store import Store, now
from vora_serve.gateway.batches.upload import Upload, most_bytes, receive_upload
from vora_serve.gateway.schemas.base import Name, Schema, explain
from vora_serve.gateway.schemas.fields import FieldPolicy
from vora_serve.gateway.schemas.parse import read_object, settle
from vora_serve.gateway.settings import BatchSettings
from vora_serve.gateway.state import GatewayState

#: Of files that callers upload: a batch's requests, and what other requests name by id.
_PURPOSES = ("batch", "user_data", "assistants", "vision")

Short = Annotated[str, Field(max_length=64)]
Value = Annotated[str, Field(max_length=512)]


class ExpiresAfter(Schema):
    """How long files are kept, from when they are made."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=1, le=30 * 24 * 3600)]


class BatchRequest(Schema):
    """A batch to run."""

    input_file_id: Name
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Annotated[dict[Short, Value], Field(max_length=16)] | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchService:
    """Files and batches of all tenants; each sees its own only.

    Args:
        state: The gateway's.
        settings: With a folder.

    Raises:
        ConfigError: the folder cannot be written to.
    """

    def __init__(self, state: GatewayState, settings: BatchSettings) -> None:
        assert settings.folder is not None
        self._state = state
        self._settings = settings
        self.store = Store(settings.folder, settings)
        self._runner = BatchRunner(state, self.store, settings)
        self._task: asyncio.Task[None] | None = None
        state.before_metrics.append(self._refresh_metrics)

    def start(self) -> None:
        """Begin running batches; needs a running event loop."""
        self._task = asyncio.create_task(self._runner.run())

    async def stop(self) -> None:
        """Stop; what has not been answered is made again by the next process."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.store.close()

    def _refresh_metrics(self) -> None:
        counts, held = self.store.totals()
        for status in ("validating", "in_progress", "finalizing", "cancelling", *FINAL):
            self._state.metrics.batches.labels(status).set(counts.get(status, 0))
        self._state.metrics.batch_bytes.set(held)

    # ------------------------------------------------------------------------------- files

    async def upload(self, tenant: str, scope: Scope, receive: Receive) -> dict[str, Any]:
        """Keep an uploaded file.

        Raises:
            APIError: the form is wrong, or there is no room.
        """
        limit = self._settings.max_file_bytes
        most = most_bytes(scope, limit)
        reserved = StoredFile(new_id("file-"), tenant, "", "", most, now(), None)
        await asyncio.to_thread(self.store.reserve, reserved)
        try:
            upload = await receive_upload(
                scope,
                receive,
                self.store.path(reserved.id),
                most,
                self._state.settings.server.body_timeout_s,
            )
            file = self._checked(reserved, upload)
            await asyncio.to_thread(self.store.complete, file)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self.store.discard, reserved.id))
            raise
        return file.shown()

    def _checked(self, reserved: StoredFile, upload: Upload) -> StoredFile:
        purpose = upload.fields.get("purpose", "")
        if purpose not in _PURPOSES:
            raise InvalidRequestError(
                f"'purpose' must be one of {', '.join(_PURPOSES)}.", param="purpose"
            )
        if not upload.size:
            raise InvalidRequestError("The file is empty.", param="file", code="empty_file")
        seconds = int(self._settings.keep_s)
        wanted = upload.fields.get("expires_after[seconds]")
        if wanted is not None:
            try:
                anchor = upload.fields.get("expires_after[anchor]")
                tree = {"anchor": anchor, "seconds": int(wanted)}
                seconds = min(seconds, ExpiresAfter.model_validate(tree).seconds)
            except (ValueError, ValidationError):
                raise InvalidRequestError(
                    "'expires_after' needs the anchor created_at and 1 to 2592000 seconds.",
                    param="expires_after",
                ) from None
        assert upload.filename is not None
        created = reserved.created_at
        return StoredFile(
            reserved.id,
            reserved.tenant,
            purpose,
            upload.filename,
            upload.size,
            created,
            created + seconds,
        )

    async def list_files(
        self, tenant: str, purpose: str | None, order: str, after: str | None, limit: int
    ) -> dict[str, Any]:
        """A page of a tenant's files."""
        files = await asyncio.to_thread(self.store.files, tenant)
        if order == "desc":
            files.reverse()
        shown = [file.shown() for file in files if purpose in (None, file.purpose)]
        return _page(shown, after, limit)

    async def get_file(self, tenant: str, file_id: str) -> StoredFile:
        """One of a tenant's files.

        Raises:
            NotFoundError
        """
        return await asyncio.to_thread(self.store.file, tenant, file_id)

    async def delete_file(self, tenant: str, file_id: str) -> dict[str, Any]:
        """Delete one of a tenant's files.

        Raises:
            NotFoundError
            InvalidRequestError: a batch is reading it.
        """
        await asyncio.to_thread(self.store.delete, tenant, file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    async def read(self, tenant: str, file_id: str, limit: int) -> bytes:
        """The content of a file that a request names by its id.

        Raises:
            NotFoundError
        """

        def content() -> bytes:
            file = self.store.file(tenant, file_id)
            with self.store.path(file.id).open("rb") as stream:
                return stream.read(limit + 1)

        return await asyncio.to_thread(content)

    # ----------------------------------------------------------------------------- batches

    async def create(self, key: ApiKey, tenant: str, body: bytes) -> tuple[Any, list[str]]:
        """Start a batch.

        Returns:
            It, and the names of fields that were dropped.

        Raises:
            InvalidRequestError, NotFoundError
        """
        try:
            request = BatchRequest.model_validate(read_object(body))
        except ValidationError as error:
            raise explain(error) from None
        policy = FieldPolicy(self._state.settings.fields)
        settle(request, policy)
        try:
            file = await self.get_file(tenant, request.input_file_id)
        except NotFoundError as error:
            error.param = "input_file_id"
            raise
        if file.purpose != "batch":
            raise InvalidRequestError(
                "The input file must have been uploaded with the purpose 'batch'.",
                param="input_file_id",
            )
        kept = request.output_expires_after
        batch = StoredBatch(
            id=new_id("batch_"),
            tenant=tenant,
            key=json.loads(key.model_dump_json()),
            endpoint=request.endpoint,
            input_file_id=file.id,
            status="validating",
            created_at=now(),
            expires_at=now() + int(self._settings.window_s),
            output_id=new_id("file-"),
            error_id=new_id("file-"),
            metadata=request.metadata,
            output_seconds=kept.seconds if kept is not None else None,
        )
        await asyncio.to_thread(self.store.add, batch)
        self._runner.notice()
        return batch.shown(), policy.dropped

    async def get(self, tenant: str, batch_id: str) -> dict[str, Any]:
        """One of a tenant's batches.

        Raises:
            NotFoundError
        """
        return (await asyncio.to_thread(self.store.batch, tenant, batch_id)).shown()

    async def list_batches(self, tenant: str, after: str | None, limit: int) -> dict[str, Any]:
        """A page of a tenant's batches, the newest first."""
        batches = await asyncio.to_thread(self.store.batches, tenant)
        return _page([batch.shown() for batch in batches], after, limit)

    async def cancel(self, tenant: str, batch_id: str) -> dict[str, Any]:
        """Stop a batch; the answers that it has are kept.

        Raises:
            NotFoundError
            InvalidRequestError: it has ended.
        """
        batch = await asyncio.to_thread(self.store.batch, tenant, batch_id)
        moved = await asyncio.to_thread(
            self.store.move, batch_id, "cancelling", "validating", "in_progress"
        )
        if not moved and batch.status not in ("cancelling", "cancelled"):
            raise InvalidRequestError(
                f"The batch is {batch.status} and cannot be cancelled.",
                code="batch_not_cancellable",
            )
        self._runner.notice()
        return await self.get(tenant, batch_id)


def _page(shown: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """One page of a list, in OpenAI's form."""
    start = 0
    if after is not None:
        places = [index for index, item in enumerate(shown) if item["id"] == after]
        start = places[0] + 1 if places else len(shown)
    data = shown[start : start + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": start + limit < len(shown),
    }
