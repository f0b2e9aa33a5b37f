"""What an adapter is worth, served: accuracy beside blank images, and text beside the base LLM."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.smol.merge import merge
from loadtest.servers import Server
from loadtest.settings import EngineSettings, ServerSpec
from vora_serve.accuracy import sign_test, summarise
from vora_serve.evaluation.client import Endpoint, ask_all
from vora_serve.evaluation.texts import Text, ask_texts, read_texts, score_texts
from vora_serve.world.suite import Item, build_suite, is_right
from vora_serve.world.wide import Assets, find_assets
from vora_serve.world.wide.suite import build_wide_suite

_FLAGS = "--dtype float32 --max-model-len 1024 --enforce-eager --max-num-seqs 8"
_ENGINE = EngineSettings(
    args=_FLAGS.split(),
    env={"VLLM_CPU_KVCACHE_SPACE": "1", "VORA_SERVE_ENGINE__CPU_KVCACHE_GIB": "1"},
    start_timeout_s=500,
)


def evaluate(work: Path, out: Path, emoji: Path, limit: int) -> None:
    """Merge the adapter, serve base, adapter and merged model, ask, and write ``served.json``.

    Args:
        work: of the run; holds ``base`` and ``texts``.
        out: of the run; holds the adapter.
        emoji: folder of the emoji.
        limit: questions of each family.
    """
    base, merged, adapter = work / "base", work / "merged", work / "joined"
    for line in merge(out, work):
        sys.stderr.write(line + "\n")
    texts = read_texts(work / "texts" / "held_out.jsonl", None)
    found: dict[str, Any] = {"texts": len(texts), "text": {}, "groups": {}}
    unmerged = {"VORA_SERVE_ENGINE__VISION_ADAPTERS": json.dumps({"adapter": str(adapter)})}
    with _serving("base", base, work / "logs", unmerged) as url:
        for name in ("base", "adapter"):
            found["text"][name] = _texts(Endpoint(url, name), texts)
    with _serving("merged", merged, work / "logs", {}) as url:
        endpoint = Endpoint(url, "merged")
        found["text"]["merged"] = _texts(endpoint, texts)
        items = held_out(find_assets(emoji), limit)
        right, blank = _ask(endpoint, items), _ask(endpoint, [item.blank() for item in items])
        found["groups"] = _rows(items, right, blank)
    (out / "served.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def held_out(assets: Assets, limit: int) -> list[Item]:
    """Questions about shapes, digits and the wide world, which has a family ``count`` of its own.

    Args:
        assets: emoji and fonts.
        limit: questions of each family.
    """
    wide = [
        replace(item, group="count, emoji") if item.group == "count" else item
        for item in build_wide_suite(assets, limit)
    ]
    return build_suite(limit) + wide


@contextmanager
def _serving(name: str, model: Path, logs: Path, env: dict[str, str]) -> Iterator[str]:
    with ExitStack() as stack:
        server = Server(
            ServerSpec(name=name, kind="serve", model=str(model), env=env), _ENGINE, logs
        )
        stack.callback(server.stop)
        server.start()
        yield server.target.url


def _texts(endpoint: Endpoint, texts: Sequence[Text]) -> dict[str, float]:
    return score_texts(texts, ask_texts(endpoint, texts)).metrics


def _rows(
    items: Sequence[Item], right: Sequence[bool], blank: Sequence[bool]
) -> list[dict[str, Any]]:
    rows = []
    for row in summarise([(item.group, item.chance) for item in items], right, blank):
        of_group = [n for n, item in enumerate(items) if item.group == row.group]
        p = sign_test([right[n] for n in of_group], [blank[n] for n in of_group])
        rows.append({**asdict(row), "p": p})
    return rows


def _ask(endpoint: Endpoint, items: Sequence[Item]) -> list[bool]:
    replies = ask_all(endpoint, [(item.images, item.question) for item in items])
    return [is_right(reply, item.answer) for reply, item in zip(replies, items, strict=True)]
