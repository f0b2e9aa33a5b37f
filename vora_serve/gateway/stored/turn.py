"""One turn of a kept conversation: its context put before its input, its answer kept."""

from __future__ import annotations

import logging
import re
from typing import Any

from pydantic_core import from_json, to_json

from vora_core.errors import APIError, InvalidRequestError, NotFoundError, UnavailableError
from vora_serve.gateway.memory import Share
from vora_serve.gateway.stored.entry import StoredResponse, as_item, with_ids
from vora_serve.gateway.stored.store import ResponseStore

logger = logging.getLogger("vora_serve.gateway.stored")

Tree = dict[str, Any]
_PLACE = re.compile(r"\binput\[(\d+)\]")


class Turn:
    """What a request for a response has to do with those that are kept.

    Args:
        store: Where they are kept.
        tenant: Whose they are.
        previous: The response before this one.
        asked: The input's own items as JSON; None where the answer is not to be kept.
        before: How many items of earlier turns stand before the input's own.
    """

    def __init__(
        self,
        store: ResponseStore,
        tenant: str,
        previous: str | None,
        asked: bytes | None,
        before: int,
    ) -> None:
        self._store = store
        self._tenant = tenant
        self._asked = asked
        self._previous = previous
        self._before = before

    @property
    def fields(self) -> Tree:
        """What the response's objects say of it."""
        return {"store": self._asked is not None, "previous_response_id": self._previous}

    async def keep(self, response: Tree) -> None:
        """Keep the finished response; one that cannot be kept is answered all the same."""
        finished = response.get("status") in ("completed", "incomplete")
        if self._asked is None or not finished or not isinstance(response.get("id"), str):
            return
        entry = StoredResponse(response, with_ids(from_json(self._asked)), self._previous)
        try:
            if not await self._store.put(self._tenant, entry):
                logger.warning("a response is too large to be kept")
        except OSError as error:
            logger.error("a response could not be kept: %s", error)

    def own_place(self, text: str) -> str:
        """A text that names items by their place, counted as the caller counts them."""
        return _PLACE.sub(lambda match: f"input[{int(match[1]) - self._before}]", text)

    def in_callers_words(self, error: APIError) -> APIError:
        """A refusal that names places as the caller counts them."""
        error.message = self.own_place(error.message)
        error.args = (error.message,)
        if error.param is not None:
            error.param = self.own_place(error.param)
        return error


async def begin_turn(
    tree: Tree,
    store: ResponseStore,
    tenant: str,
    models: list[str] | None,
    share: Share,
    chain: int,
) -> Turn:
    """Put what is kept into a request, in place: the turns before it, and the items it refers to.

    Args:
        tree: The request as it came.
        store: Where responses are kept.
        tenant: Whose; nothing of another's is ever found.
        models: Those that the caller may use, where not all.
        share: The request's memory.
        chain: How many turns there may be.

    Raises:
        InvalidRequestError: a field has the wrong type, or there is no such response.
        NotFoundError: there is no such item.
        UnavailableError: the store is out of reach.
        RequestTooLargeError, RateLimitError: what is kept does not fit into memory.
    """
    previous, wanted = tree.pop("previous_response_id", None), tree.pop("store", None)
    for name, value, kind in (("previous_response_id", previous, str), ("store", wanted, bool)):
        if value is not None and not isinstance(value, kind):
            what = "a string" if kind is str else "a boolean"
            raise InvalidRequestError(
                f"Invalid value for '{name}': it should be {what}.", param=name
            )
    look_up = _LookUp(store, tenant, models, share)
    try:
        before = await look_up.turns(previous, chain) if previous is not None else []
        given = tree.get("input")
        items = given if isinstance(given, list) else [] if given is None else [as_item(given)]
        own = [await look_up.resolved(item, place) for place, item in enumerate(items)]
    except OSError:
        raise UnavailableError("Kept responses are out of reach.", retry_after=2) from None
    if before or isinstance(given, list):
        tree["input"] = before + own
    asked = to_json(own) if wanted is not False else None
    share.grow(len(asked or b""))
    return Turn(store, tenant, previous, asked, len(before))


class _LookUp:
    """Finds what a request refers to."""

    def __init__(
        self, store: ResponseStore, tenant: str, models: list[str] | None, share: Share
    ) -> None:
        self._store = store
        self._tenant = tenant
        self._models = models
        self._share = share

    async def turns(self, response_id: str, chain: int) -> list[Tree]:
        """The items of all turns up to a response, the first turn's first."""
        turns: list[StoredResponse] = []
        wanted: str | None = response_id
        while wanted is not None:
            if len(turns) >= chain:
                raise InvalidRequestError(
                    f"The conversation has more than {chain} turns.", param="previous_response_id"
                )
            entry = await self._get(wanted)
            if entry is None:
                raise InvalidRequestError(
                    f"There is no response '{wanted[:100]}'; it may have expired.",
                    param="previous_response_id",
                    code="previous_response_not_found",
                )
            turns.append(entry)
            wanted = entry.previous
        return [item for entry in reversed(turns) for item in entry.items()]

    async def resolved(self, item: Any, place: int) -> Any:
        """An item, or the one that it refers to."""
        if not isinstance(item, dict) or not is_reference(item):
            return item
        item_id = item.get("id")
        holder = None
        if isinstance(item_id, str):
            holder = await self._store.holder(self._tenant, item_id)
        entry = await self._get(holder) if holder is not None else None
        found = entry.item(item_id) if entry is not None and isinstance(item_id, str) else None
        if found is None:
            raise NotFoundError(
                f"There is no item '{str(item_id)[:100]}'; it may have expired.",
                param=f"input[{place}]",
                code="item_not_found",
            )
        return found

    async def _get(self, response_id: str) -> StoredResponse | None:
        entry = await self._store.get(self._tenant, response_id)
        if entry is None:
            return None
        if self._models is not None and entry.response.get("model") not in self._models:
            return None
        self._share.grow(len(entry.encode()))
        return entry


def is_reference(item: Tree) -> bool:
    """Whether an item only names another, by its type or as the only thing that it says."""
    return item.get("type") == "item_reference" or set(item) == {"id"}
