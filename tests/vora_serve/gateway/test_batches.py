"""Files and batches, through OpenAI's own client where it can ask for it."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest

from tests.vora_serve.gateway.conftest import LiveGateway, Start
from tests.vora_serve.gateway.fake_engine import FakeEngine, ThreadServer, running
from tests.vora_serve.gateway.pdf_files import RED, pages
from vora_core.errors import ConfigError
from vora_serve.gateway import create_app, load_settings
from vora_serve.gateway.batches import lines
from vora_serve.gateway.batches.store import Store
from vora_serve.gateway.settings import BatchSettings

CHAT = "/v1/chat/completions"
CLIENTS: list[openai.OpenAI] = []


class Strict(NamedTuple):
    """A gateway with low limits, its engine, and where it keeps files."""

    gateway: LiveGateway
    engine: FakeEngine
    files: Path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("vora_serve.gateway.batches.runner._TICK_S", 0.05)
    monkeypatch.setattr("vora_serve.gateway.batches.runner._BACKOFF_S", 0.05)
    yield
    while CLIENTS:
        CLIENTS.pop().close()


def line(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"messages": [{"role": "user", "content": f"say {custom_id}"}]}
    if url == "/v1/completions":
        content = {"prompt": custom_id}
    if url == "/v1/responses":
        content = {"input": custom_id}
    whole = {"model": "vora-test", **content, **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": whole}


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def client_of(gateway: LiveGateway, key: str = "none") -> openai.OpenAI:
    client = openai.OpenAI(
        base_url=f"{gateway.url}/v1",
        api_key=key,
        max_retries=0,
        http_client=httpx.Client(trust_env=False),
    )
    CLIENTS.append(client)
    return client


def started(client: openai.OpenAI, content: bytes, endpoint: Any = CHAT, **more: Any) -> Any:
    file = client.files.create(file=("in.jsonl", io.BytesIO(content)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
    )


def until(check: Any, within: float = 20) -> Any:
    """What a check gives once it gives something true."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        found = check()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def ended(client: openai.OpenAI, batch_id: str, status: str) -> Any:
    def check() -> Any:
        batch = client.batches.retrieve(batch_id)
        final = batch.status in ("failed", "completed", "expired", "cancelled")
        assert not final or batch.status == status, batch
        return batch if final else None

    return until(check)


def rows(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    text = client.files.content(file_id).text
    return [json.loads(part) for part in text.splitlines()]


@pytest.fixture
def gateway(engine: FakeEngine, start_gateway: Start, tmp_path: Path) -> LiveGateway:
    return start_gateway(engine.url, batches={"folder": str(tmp_path / "batches")})


@pytest.fixture
def client(gateway: LiveGateway) -> openai.OpenAI:
    return client_of(gateway)


# ------------------------------------------------------------------------------- the way through


@pytest.mark.parametrize("endpoint", [CHAT, "/v1/completions", "/v1/responses"])
def test_a_batch_from_upload_to_answers(
    client: openai.OpenAI, engine: FakeEngine, endpoint: Any
) -> None:
    content = jsonl(*(line(f"r{i}", endpoint) for i in range(20)))
    kept = {"anchor": "created_at", "seconds": 7200}
    batch = started(client, content, endpoint, metadata={"run": "1"}, output_expires_after=kept)
    assert batch.status == "validating"
    assert batch.metadata == {"run": "1"}
    batch = ended(client, batch.id, "completed")
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (20, 20, 0)
    assert batch.error_file_id is None
    assert batch.in_progress_at
    assert batch.finalizing_at
    assert batch.completed_at
    found = rows(client, batch.output_file_id)
    assert sorted(row["custom_id"] for row in found) == sorted(f"r{i}" for i in range(20))
    for row in found:
        assert row["error"] is None
        assert row["response"]["status_code"] == 200
        assert row["response"]["request_id"].startswith("req-")
        assert row["response"]["body"]["object"] in (
            "chat.completion",
            "text_completion",
            "response",
        )
    assert len(engine.seen) == 20
    assert client.batches.list().data[0].id == batch.id
    output = client.files.retrieve(str(batch.output_file_id))
    assert output.expires_at == output.created_at + 7200
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")


def test_requests_that_fail_are_answers_too(client: openai.OpenAI) -> None:
    wrong = line("wrong", temperature=-3)
    unknown = line("unknown", model="other")
    batch = ended(client, started(client, jsonl(line("good"), wrong, unknown)).id, "completed")
    assert batch.request_counts.completed == 1
    assert batch.request_counts.failed == 2
    assert [row["custom_id"] for row in rows(client, batch.output_file_id)] == ["good"]
    told = {row["custom_id"]: row["response"] for row in rows(client, batch.error_file_id)}
    assert told["wrong"]["status_code"] == 400
    assert told["wrong"]["body"]["error"]["param"] == "temperature"
    assert told["unknown"]["status_code"] == 404


def test_files(client: openai.OpenAI) -> None:
    first = client.files.create(file=("a.jsonl", b"{}"), purpose="batch")
    second = client.files.create(
        file=("b.pdf", b"%PDF-"),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert second.expires_at == second.created_at + 3600
    assert [file.id for file in client.files.list()] == [second.id, first.id]
    assert [file.id for file in client.files.list(order="asc", limit=1)] == [first.id, second.id]
    assert [file.id for file in client.files.list(purpose="batch")] == [first.id]
    assert client.files.content(first.id).content == b"{}"
    answer = httpx.get(f"{client.base_url}files/{first.id}/content", trust_env=False)
    assert answer.headers["content-disposition"] == "attachment"
    for path in ("..%2Fbatches.sqlite", "%2E%2E%2Fbatches.sqlite", "x%00", "a" * 3000):
        url = f"{client.base_url}files/{path}/content"
        assert httpx.get(url, trust_env=False).status_code == 404, path
    assert client.files.delete(first.id).deleted
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="There is no such file"):
            ask(first.id)


def test_a_request_names_an_uploaded_pdf(
    client: openai.OpenAI, gateway: LiveGateway, engine: FakeEngine
) -> None:
    file = client.files.create(file=("a.pdf", pages(RED, RED)), purpose="user_data")
    part = {"type": "file", "file": {"file_id": file.id}}
    assert gateway.chat([part]).status_code == 200
    assert len(engine.image_sizes) == 2
    missing = gateway.chat([{"type": "file", "file": {"file_id": "file-x"}}])
    assert missing.status_code == 404
    assert missing.json()["error"]["param"] == "messages[0].content[0].file.file_id"


# ------------------------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strict]:
    """One gateway for all that it refuses; a line has at most 4000 bytes, a batch 11 of them."""
    folder = tmp_path_factory.mktemp("strict")
    with ExitStack() as stack:
        engine = stack.enter_context(running(FakeEngine()))
        flags = {
            "upstreams": [engine.url],
            "batches": {"folder": str(folder), "max_requests": 11},
            "server": {"max_body_bytes": 4000},
            "logging": {"access": False},
        }
        app = create_app(load_settings(flags=flags))
        server = ThreadServer(app)
        port = server.start()
        stack.callback(server.stop)
        gateway = LiveGateway(server, app.state.gateway, port)
        stack.callback(gateway.client.close)
        yield Strict(gateway, engine, folder / "files")


@pytest.mark.parametrize(
    ("content", "code", "number"),
    [
        (b"\n\n", "empty_file", None),
        (b"{", "invalid_json_line", 1),
        (b"[]\n", "invalid_json_line", 1),
        (jsonl(line("a"), line("a")), "duplicate_custom_id", 2),
        (jsonl(line("a"), {**line("b"), "custom_id": 3}), "invalid_custom_id", 2),
        (jsonl({**line("a"), "method": "GET"}), "invalid_method", 1),
        (jsonl(line("a", "/v1/completions")), "mismatched_url", 1),
        (jsonl(line("a", stream=True)), "invalid_body", 1),
        (jsonl({**line("a"), "body": "x"}), "invalid_body", 1),
        (b"x" * 5000 + b"\n" + jsonl(line("a")), "line_too_long", 1),
        (jsonl(*(line(str(i)) for i in range(12))), "too_many_requests", None),
        (b"\xff\xfe\n", "invalid_json_line", 1),
    ],
)
def test_a_wrong_input_file_fails_its_batch(
    strict: Strict, content: bytes, code: str, number: int | None
) -> None:
    client = client_of(strict.gateway)
    batch = ended(client, started(client, content).id, "failed")
    assert batch.errors.data[0].code == code
    assert batch.errors.data[0].line == number
    assert not strict.engine.seen


def test_a_last_line_without_its_end_and_a_mark_of_unicode(client: openai.OpenAI) -> None:
    content = b"\xef\xbb\xbf" + jsonl(line("a"), line("b")).replace(b"\n", b"\r\n\r\n").rstrip()
    assert ended(client, started(client, content).id, "completed").request_counts.completed == 2


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": None}, "input_file_id"),
        ({"metadata": {"a": "b" * 600}}, "metadata.a"),
        ({"priority": 1}, "priority"),
    ],
)
def test_wrong_batches_are_refused(strict: Strict, change: dict[str, Any], param: str) -> None:
    client = client_of(strict.gateway)
    file = client.files.create(file=("a.jsonl", jsonl(line("a"))), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h", **change}
    answer = strict.gateway.client.post("/v1/batches", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "multipart/form-data; boundary=x", 400),
        (b"--x\r\n\r\n", "multipart/form-data; boundary=x", 400),
        (b"nonsense", "multipart/form-data; boundary=x", 400),
        (b"{}", "application/json", 415),
        (b"{}", "multipart/form-data", 415),
    ],
)
def test_wrong_forms_are_refused(strict: Strict, body: bytes, kind: str, status: int) -> None:
    before = list(strict.files.iterdir())
    answer = strict.gateway.client.post("/v1/files", content=body, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    assert list(strict.files.iterdir()) == before


@pytest.mark.parametrize(
    ("files", "data", "param"),
    [
        ({"file": b"x"}, {"purpose": "fine-tune"}, "purpose"),
        ({"file": b"x"}, {}, "purpose"),
        ({"file": b""}, {"purpose": "batch"}, "file"),
        (
            {"other": ("a", b"x")},
            {"purpose": "batch", "expires_after[seconds]": "x"},
            "expires_after",
        ),
        ({"a": ("a", b"x"), "b": ("b", b"y")}, {"purpose": "batch"}, "file"),
    ],
)
def test_wrong_fields_of_a_form(
    strict: Strict, files: Any, data: dict[str, str], param: str
) -> None:
    before = list(strict.files.iterdir())
    answer = strict.gateway.client.post("/v1/files", files=files, data=data)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert list(strict.files.iterdir()) == before


def test_off_by_default(engine: FakeEngine, start_gateway: Start) -> None:
    gateway = start_gateway(engine.url)
    for method, path in (("POST", "/v1/files"), ("GET", "/v1/batches"), ("GET", "/v1/batches/x")):
        answer = gateway.client.request(method, path)
        assert answer.status_code == 404
        assert "batches.folder" in answer.json()["error"]["message"]


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = load_settings(flags={"batches": {"folder": str(tmp_path / "file")}})
    with pytest.raises(ConfigError, match=r"The folder batches.folder, .*cannot be used"):
        create_app(settings)


# ------------------------------------------------------------------------------- limits on disk


def test_disk_is_bounded(engine: FakeEngine, start_gateway: Start, tmp_path: Path) -> None:
    gateway = start_gateway(
        engine.url,
        batches={
            "folder": str(tmp_path),
            "max_file_bytes": 3000,
            "max_bytes_per_tenant": 5000,
            "max_files_per_tenant": 3,
        },
    )
    client = client_of(gateway)
    with pytest.raises(openai.APIStatusError) as large:
        client.files.create(file=("a", bytes(100_000)), purpose="batch")
    assert (large.value.status_code, large.value.code) == (413, "file_too_large")
    chunks = gateway.client.post(  # whose length is told by nobody
        "/v1/files",
        content=iter(
            [b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\n', bytes(90_000)]
        ),
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert (chunks.status_code, chunks.json()["error"]["code"]) == (413, "file_too_large")
    client.files.create(file=("a", bytes(2500)), purpose="batch")
    with pytest.raises(openai.APIStatusError) as full:
        client.files.create(file=("a", bytes(2800)), purpose="batch")
    assert (full.value.status_code, full.value.code) == (413, "storage_full")
    client.files.create(file=("a", b"x"), purpose="batch")
    client.files.create(file=("a", b"x"), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="max_files_per_tenant"):
        client.files.create(file=("a", b"x"), purpose="batch")
    assert sum(path.stat().st_size for path in (tmp_path / "files").iterdir()) == 2502


def test_answers_that_find_no_room_end_their_batch(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path
) -> None:
    content = jsonl(*(line(f"r{i}") for i in range(30)))
    gateway = start_gateway(
        engine.url,
        batches={"folder": str(tmp_path), "max_bytes": len(content) + 4000, "max_in_flight": 1},
    )
    client = client_of(gateway)
    batch = ended(client, started(client, content).id, "failed")
    assert batch.errors.data[0].code == "storage_full"
    assert 0 < len(rows(client, batch.output_file_id)) < 30


def test_batches_that_ended_are_bounded(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path
) -> None:
    gateway = start_gateway(
        engine.url,
        batches={
            "folder": str(tmp_path),
            "max_batches_per_tenant": 1,
            "max_ended_batches_per_tenant": 2,
        },
    )
    client = client_of(gateway)
    made = [ended(client, started(client, b"{").id, "failed").id for _ in range(5)]
    assert [batch.id for batch in client.batches.list()] == made[:1:-1]
    page = client.batches.list(limit=1)
    assert (page.data[0].id, page.has_more) == (made[-1], True)
    engine.first_delay_s = 1
    started(client, jsonl(line("a")))
    with pytest.raises(openai.BadRequestError, match="max_batches_per_tenant"):
        started(client, jsonl(line("a")))


def test_files_and_batches_expire(client: openai.OpenAI, tmp_path: Path) -> None:
    batch = ended(client, started(client, jsonl(line("a"))).id, "completed")
    store = Store(tmp_path / "batches", BatchSettings())
    with store.transaction() as connection:
        connection.execute("UPDATE files SET expires_at = 1")
        connection.execute("UPDATE batches SET created_at = 1")
    assert not client.files.list().data
    store.sweep()
    store.close()
    assert not list((store.folder / "files").iterdir())
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve(batch.id)


# ------------------------------------------------------------------------------------- tenants


KEYS = """
keys:
  - {name: ann, sha256: %s}
  - {name: bob, sha256: %s}
"""


def hashed(key: str) -> str:
    from vora_serve.gateway.admission import hash_key

    return hash_key(key)


def test_tenants_see_their_own_only(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(KEYS % (hashed("vora-ann"), hashed("vora-bob")))
    gateway = start_gateway(
        engine.url, batches={"folder": str(tmp_path / "b")}, auth={"keys_file": str(keys)}
    )
    ann, bob = client_of(gateway, "vora-ann"), client_of(gateway, "vora-bob")
    with pytest.raises(openai.AuthenticationError):
        client_of(gateway, "vora-eve").files.list()
    batch = ended(ann, started(ann, jsonl(line("a"))).id, "completed")
    output = str(batch.output_file_id)
    assert not bob.files.list().data
    assert not bob.batches.list().data
    for ask in (
        lambda: bob.files.retrieve(output),
        lambda: bob.files.content(output),
        lambda: bob.files.delete(output),
        lambda: bob.batches.retrieve(batch.id),
        lambda: bob.batches.cancel(batch.id),
        lambda: bob.batches.create(
            input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"
        ),
        lambda: bob.chat.completions.create(
            model="vora-test",
            messages=[{"role": "user", "content": [{"type": "file", "file": {"file_id": output}}]}],
        ),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    assert rows(ann, output)
    salts = {payload["cache_salt"] for payload in engine.seen}
    assert len(salts) == 1  # ann's, though no header named her


def test_a_key_that_is_revoked_ends_its_batches(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path
) -> None:
    engine.first_delay_s = 0.2
    keys = tmp_path / "keys.yaml"
    keys.write_text(KEYS % (hashed("vora-ann"), hashed("vora-bob")))
    gateway = start_gateway(
        engine.url,
        batches={"folder": str(tmp_path / "b"), "max_in_flight": 1},
        auth={"keys_file": str(keys)},
    )
    ann = client_of(gateway, "vora-ann")
    batch = started(ann, jsonl(*(line(f"r{i}") for i in range(50))))
    until(lambda: engine.seen)
    revoked = KEYS.replace("name: ann,", "name: ann, revoked: true,")
    keys.write_text(revoked % (hashed("vora-ann"), hashed("vora-bob")))
    assert gateway.state.keys.reload()
    store = Store(tmp_path / "b", BatchSettings())
    until(lambda: store.batch("key:ann", batch.id).status == "failed")
    assert store.batch("key:ann", batch.id).errors[0]["code"] == "invalid_api_key"
    store.close()
    assert len(engine.seen) < 50


# ------------------------------------------------------------------------- interruptions


def test_cancel_keeps_what_there_is(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.first_delay_s = 0.1
    batch = started(client, jsonl(*(line(f"r{i}") for i in range(200))))
    until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 5)
    with pytest.raises(openai.BadRequestError, match="still reads this file"):
        client.files.delete(str(batch.input_file_id))
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch.id, "cancelled")
    done = rows(client, batch.output_file_id)
    left = rows(client, batch.error_file_id)
    assert len(done) >= 5
    assert len(done) + len(left) == 200
    assert {row["error"]["code"] for row in left} == {"batch_cancelled"}
    assert client.files.delete(str(batch.input_file_id)).deleted
    engine.first_delay_s = 0
    whole = ended(client, started(client, jsonl(line("a"))).id, "completed")
    with pytest.raises(openai.BadRequestError, match="completed and cannot be cancelled"):
        client.batches.cancel(whole.id)


def test_an_expired_batch_keeps_what_there_is(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path
) -> None:
    engine.first_delay_s = 0.1
    gateway = start_gateway(
        engine.url, batches={"folder": str(tmp_path), "window_s": 2, "max_in_flight": 1}
    )
    client = client_of(gateway)
    batch = ended(
        client, started(client, jsonl(*(line(f"r{i}") for i in range(200)))).id, "expired"
    )
    done, left = rows(client, batch.output_file_id), rows(client, batch.error_file_id)
    assert len(done) + len(left) == 200
    assert {row["error"]["code"] for row in left} == {"batch_expired"}


@pytest.fixture
def restart(engine: FakeEngine, tmp_path: Path) -> Iterator[Any]:
    """Gateways over one folder, one after the other."""
    with ExitStack() as stack:

        def start(**more: Any) -> tuple[openai.OpenAI, ThreadServer]:
            flags = {
                "upstreams": [engine.url],
                "batches": {"folder": str(tmp_path / "b"), "max_in_flight": 4},
                "logging": {"access": False},
                **more,
            }
            app = create_app(load_settings(flags=flags))
            server = ThreadServer(app)
            port = server.start()
            stack.callback(server.stop)
            return client_of(LiveGateway(server, app.state.gateway, port)), server

        yield start


def test_a_restarted_gateway_goes_on(restart: Any, engine: FakeEngine, tmp_path: Path) -> None:
    engine.first_delay_s = 0.05
    client, server = restart()
    batch = started(client, jsonl(*(line(f"r{i}") for i in range(60))))
    until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 10)
    server.stop()
    files = tmp_path / "b" / "files"
    output = max(files.iterdir(), key=lambda path: path.stat().st_mtime)
    kept = output.read_bytes().count(b"\n")
    assert 10 <= kept < 60
    with output.open("ab") as file:  # as a crash leaves it
        file.write(b'{"id": "batch_req_x", "custom_id": "r59", "resp')
    before = len(engine.seen)
    client, _ = restart()
    batch = ended(client, batch.id, "completed")
    assert batch.request_counts.completed == 60
    found = [row["custom_id"] for row in rows(client, batch.output_file_id)]
    assert sorted(found) == sorted(f"r{i}" for i in range(60))  # each once
    assert len(engine.seen) - before == 60 - kept


def test_one_of_several_gateways_runs_the_batches(restart: Any, engine: FakeEngine) -> None:
    _, server = restart()
    second, _ = restart()
    engine.first_delay_s = 0.05
    batch = started(second, jsonl(*(line(f"r{i}") for i in range(60))))
    until(lambda: second.batches.retrieve(batch.id).request_counts.completed >= 5)
    server.stop()  # the other takes over
    batch = ended(second, batch.id, "completed")
    assert batch.request_counts.completed == 60
    assert len({row["custom_id"] for row in rows(second, batch.output_file_id)}) == 60


def test_a_batch_waits_for_an_engine(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path
) -> None:
    gateway = start_gateway(
        engine.url, batches={"folder": str(tmp_path)}, routing={"breaker_open_s": 0.1}
    )
    client = client_of(gateway)
    engine.status, engine.error_message = 503, "busy"
    batch = started(client, jsonl(line("a")))
    until(lambda: len(engine.seen) >= 2)
    engine.status = 200
    assert ended(client, batch.id, "completed").request_counts.completed == 1


def test_an_answer_that_could_not_be_written_is_made_again(
    client: openai.OpenAI, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full once, in the middle of a line."""
    monkeypatch.setattr("vora_serve.gateway.batches.runner._AFTER_FAULT_S", 0.05)
    write = io.FileIO.write
    failed: list[bool] = []

    class FullOnce(io.FileIO):
        def write(self, data: Any) -> int:
            if not failed:
                failed.append(True)
                write(self, bytes(data)[:20])
                raise OSError(28, "No space left on device")
            return write(self, data)

    def opened(path: Any, mode: str, buffering: int, opener: Any) -> FullOnce:
        return FullOnce(path, mode, opener=opener)

    monkeypatch.setattr("vora_serve.gateway.batches.run.open", opened, raising=False)
    batch = ended(client, started(client, jsonl(line("a"), line("b"))).id, "completed")
    assert failed
    assert sorted(row["custom_id"] for row in rows(client, batch.output_file_id)) == ["a", "b"]
    assert len(engine.seen) == 3


def test_an_engine_that_fails_for_good_is_an_answer(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.die_after = 0
    engine.status = 500
    batch = ended(client, started(client, jsonl(line("a"))).id, "completed")
    assert batch.request_counts.failed == 1
    assert len(engine.seen) == 3
    assert rows(client, batch.error_file_id)[0]["response"]["status_code"] >= 500


# --------------------------------------------------------------------- online requests go first


@pytest.mark.parametrize(("most", "room"), [(3, 0), (4, 1)])
def test_online_requests_leave_a_batch_less_room(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path, most: int, room: int
) -> None:
    engine.first_delay_s = 1.5
    gateway = start_gateway(engine.url, batches={"folder": str(tmp_path), "max_in_flight": most})
    client = client_of(gateway)
    threads = [threading.Thread(target=gateway.chat, args=("online",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: engine.running == 3)
    batch = started(client, jsonl(*(line(f"r{i}") for i in range(6))))
    until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
    time.sleep(0.3)
    assert engine.running == 3 + room
    engine.first_delay_s = 0
    for thread in threads:
        thread.join()
    ended(client, batch.id, "completed")


def test_online_requests_pass_a_batch_in_the_queue(
    engine: FakeEngine, start_gateway: Start, tmp_path: Path
) -> None:
    """Even those of its own tenant, who otherwise takes one turn after the other."""
    engine.first_delay_s = 0.2
    keys = tmp_path / "keys.yaml"
    keys.write_text(KEYS % (hashed("vora-ann"), hashed("vora-bob")))
    gateway = start_gateway(
        engine.url,
        batches={"folder": str(tmp_path / "b")},
        admission={"max_in_flight": 1},
        auth={"keys_file": str(keys)},
    )
    ann = client_of(gateway, "vora-ann")
    started(ann, jsonl(*(line(f"r{i}") for i in range(20))))
    until(lambda: gateway.state.queue.queued == 7)
    before = len(engine.seen)
    ann.chat.completions.create(model="vora-test", messages=[{"role": "user", "content": "online"}])
    order = [payload["messages"][0]["content"] for payload in engine.seen[before:]]
    assert order.index("online") <= 1


def test_a_cut_off_line_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(lines.error_line("a", "x", "y") + b'{"custom_id": "b"')
    assert lines.answered(path) == {"a"}
    assert path.read_bytes().count(b"\n") == 1
    assert lines.answered(tmp_path / "absent") == set()


def test_metrics_show_progress(client: openai.OpenAI, gateway: LiveGateway) -> None:
    ended(client, started(client, jsonl(line("a"), line("b"))).id, "completed")
    text = gateway.client.get("/metrics").text
    assert 'vora_gateway_batch_requests_total{outcome="completed"} 2.0' in text
    assert 'vora_gateway_batches{status="completed"} 1.0' in text
    assert "vora_gateway_batch_file_bytes" in text
    assert 'route="batch /v1/chat/completions"' in text


def test_two_tenants_take_turns(engine: FakeEngine, tmp_path: Path, start_gateway: Start) -> None:
    engine.first_delay_s = 0.02
    keys = tmp_path / "keys.yaml"
    keys.write_text(KEYS % (hashed("vora-ann"), hashed("vora-bob")))
    gateway = start_gateway(
        engine.url,
        batches={"folder": str(tmp_path / "b"), "max_in_flight": 2},
        auth={"keys_file": str(keys)},
    )
    ann, bob = client_of(gateway, "vora-ann"), client_of(gateway, "vora-bob")
    started(ann, jsonl(*(line(f"a{i}") for i in range(300))))
    until(lambda: engine.seen)
    short = ended(bob, started(bob, jsonl(*(line(f"b{i}") for i in range(10)))).id, "completed")
    assert short.request_counts.completed == 10
    assert len(engine.seen) < 200
