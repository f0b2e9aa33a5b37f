"""Runs with the real load generator: faults, resumption, identity. The server is a fake one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtest.analysis.summary import summarise
from loadtest.cli import main
from loadtest.drive.generator import Generator
from loadtest.drive.points import Point, points_of, requests_for, seed_for
from loadtest.drive.runner import Runner
from loadtest.drive.store import RunFolder
from loadtest.settings import RunSettings, Workload, parse_settings
from tests.loadtest.fake_engine import FakeEngine, fake_engine
from vora_core.errors import ConfigError, EngineError, VoRAError


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generator]:
    with Generator(tmp_path_factory.mktemp("generator") / "log") as running:
        yield running


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with fake_engine() as server:
        yield server


def settings_for(*engines: FakeEngine, **more: Any) -> RunSettings:
    names = ("one", "two", "three")
    return parse_settings(
        {
            "name": "test",
            "servers": [
                {"name": name, "kind": "url", "url": engine.url, "model": "fake"}
                for name, engine in zip(names, engines, strict=False)
            ],
            "workloads": [
                {
                    "name": "text",
                    "concurrency": [1],
                    "requests": 3,
                    "warmup": 1,
                    "output_tokens": 4,
                }
            ],
            "repeats": 3,
            "timeout_s": 60,
        }
        | more
    )


def run(settings: RunSettings, folder: Path, generator: Generator) -> dict[str, Any]:
    Runner(settings, RunFolder(folder)).run(generator)
    return summarise(RunFolder(folder))


def test_a_run_is_paired_and_complete(
    engine: FakeEngine, generator: Generator, tmp_path: Path
) -> None:
    with fake_engine() as other:
        found = run(settings_for(engine, other), tmp_path / "run", generator)
    (point,) = found["points"]
    assert point["rounds"] == 3
    assert {name: got["requests"] for name, got in point["servers"].items()} == {"one": 9, "two": 9}
    assert not found["broken"]
    assert point["compared"][0]["ttft"]["ratio"]["rounds"] == 3
    # Both were asked the same, in the same order: a warm-up, then three times three.
    asked = [[b["messages"] for b in e.bodies if b.get("stream")] for e in (engine, other)]
    assert asked[0] == asked[1]
    assert len(asked[0]) == 10
    assert len({json.dumps(m) for m in asked[0]}) == 10
    assert all(b["ignore_eos"] and b["temperature"] == 0 for b in engine.bodies if b.get("stream"))


@pytest.mark.parametrize("fault", ["500", "breaks off", "error event", "vanish"])
def test_faults_are_failures(
    engine: FakeEngine, generator: Generator, tmp_path: Path, fault: str
) -> None:
    engine.fault, engine.faulty_after = fault, 5
    with fake_engine() as other:
        found = run(settings_for(other, engine), tmp_path / "run", generator)
    (point,) = found["points"]
    assert point["servers"]["two"]["requests"] == 4
    assert point["servers"]["two"]["failed"] == 5
    assert point["servers"]["one"]["failed"] == 0
    assert point["compared"][0]["rounds"] == 1
    assert "5 requests to two failed" in found["broken"][0]


def test_nothing_is_measured_where_no_warm_up_succeeds(
    engine: FakeEngine, generator: Generator, tmp_path: Path
) -> None:
    engine.fault = "500"
    with pytest.raises(EngineError, match="Every warm-up request to one failed"):
        run(settings_for(engine), tmp_path / "run", generator)


def test_another_model_stops_the_run(
    engine: FakeEngine, generator: Generator, tmp_path: Path
) -> None:
    class Swaps(RunFolder):
        def complete(self, point: str, repeat: int) -> None:
            super().complete(point, repeat)
            engine.model = "another"

    with pytest.raises(EngineError, match=r"serves \['another'\], not fake"):
        Runner(settings_for(engine), Swaps(tmp_path / "run")).run(generator)
    found = summarise(RunFolder(tmp_path / "run"))
    assert found["points"][0]["rounds"] == 1
    assert "cut off" in found["broken"][0]


def test_an_interrupted_run_goes_on(
    engine: FakeEngine, generator: Generator, tmp_path: Path
) -> None:
    class Interrupted(RunFolder):
        def save(self, point: str, repeat: int, server: str, result: dict[str, Any]) -> None:
            super().save(point, repeat, server, result)
            if (repeat, server) == (1, "one"):
                raise KeyboardInterrupt

    with fake_engine() as other:
        settings = settings_for(engine, other)
        with pytest.raises(KeyboardInterrupt):
            Runner(settings, Interrupted(tmp_path / "run")).run(generator)
        assert not summarise(RunFolder(tmp_path / "run"))["complete"]
        before = engine.served, other.served
        found = run(settings, tmp_path / "run", generator)
        # Both are warmed up and asked in the round that was cut off, and in the one after it.
        assert (engine.served - before[0], other.served - before[1]) == (7, 7)
        assert found["complete"]
        assert found["points"][0]["rounds"] == 3
        served = engine.served
        run(settings, tmp_path / "run", generator)
        assert engine.served == served
        with pytest.raises(ConfigError, match="holds a run with other settings"):
            run(settings_for(engine, other, seed=1), tmp_path / "run", generator)


def test_a_server_that_is_not_there(generator: Generator, tmp_path: Path) -> None:
    with fake_engine() as gone:
        settings = settings_for(gone, engine={"start_timeout_s": 1})
    with pytest.raises(EngineError, match="does not"):
        run(settings, tmp_path / "run", generator)


def test_rates_follow_the_throughput(
    engine: FakeEngine, generator: Generator, tmp_path: Path
) -> None:
    workload = {
        "name": "sweep",
        "concurrency": [2],
        "rates": "auto",
        "auto_shares": [0.5],
        "requests": 3,
        "output_tokens": 4,
        "level": {"ttft_ms": 60_000},
    }
    found = run(settings_for(engine, workloads=[workload], repeats=1), tmp_path / "run", generator)
    closed, opened = found["points"]
    assert opened["rate"] == pytest.approx(closed["servers"]["one"]["requests_per_s"] / 2, rel=0.1)
    assert found["best_rates"][0]["rate_per_s"] == opened["rate"]


def test_a_delay_proxy_delays_every_request_and_changes_nothing(
    engine: FakeEngine, generator: Generator, tmp_path: Path
) -> None:
    settings = settings_for(engine)
    tree = settings.model_dump(mode="json")
    tree["servers"].append({"name": "slow", "kind": "delay", "upstream": "one", "delay_ms": 50})
    found = run(parse_settings(tree), tmp_path / "run", generator)
    rounds = [results["slow"] for _, results in RunFolder(tmp_path / "run").rounds("text-c1")]
    assert min(t for r in rounds for t in r["ttft_s"]) >= 0.05
    assert found["points"][0]["servers"]["slow"]["failed"] == 0
    assert found["points"][0]["servers"]["slow"]["cpu_s_per_request"] is not None


def test_the_gateways_own_share(engine: FakeEngine, generator: Generator, tmp_path: Path) -> None:
    """A real gateway in front of the fake engine: its overhead is read, its CPU is its own."""
    tree = settings_for(engine).model_dump(mode="json")
    tree["servers"].append({"name": "gateway", "kind": "gateway", "upstream": "one"})
    tree["compare"] = [["gateway", "one"]]
    images = {"name": "image", "concurrency": [1], "requests": 3, "output_tokens": 4, "images": {}}
    tree["workloads"].append(images)
    found = run(parse_settings(tree), tmp_path / "run", generator)
    for point in found["points"]:
        direct, through = point["servers"]["one"], point["servers"]["gateway"]
        assert direct["failed"] == through["failed"] == 0
        assert "gateway_overhead" not in direct["breakdown_ms"]
        assert through["breakdown_ms"]["gateway_overhead"] > 0
        assert through["own_cpu_s_per_request"] > 0
    assert "gateway_decode" in found["points"][1]["servers"]["gateway"]["breakdown_ms"]
    assert found["points"][1]["servers"]["gateway"]["image_tokens"] == 100
    # Both ways lead to one engine, whose caches must not know a request from the other way.
    asked = [json.dumps(body["messages"]) for body in engine.bodies if body.get("stream")]
    assert len(asked) == 2 * 2 * (1 + 3 * 3)
    assert len(set(asked)) == len(asked)


def test_requests_are_unique_or_repeated_as_asked() -> None:
    def urls(point: Point, seed: int) -> list[str]:
        return [
            part["image_url"]["url"]
            for content in requests_for(point, 3, seed)
            for part in content
            if part["type"] == "image_url"
        ]

    def one(**images: Any) -> Point:
        keys = {"name": "w", "concurrency": [1], "images": {"sizes": [[32, 48]], **images}}
        return points_of(Workload.model_validate(keys))[0]

    assert len(set(urls(one(), 1))) == 3
    assert len(set(urls(one(repeated=True), 1))) == 1
    assert len(set(urls(one(count=2), 1))) == 6
    assert urls(one(), 1) == urls(one(), 1)
    assert not set(urls(one(), 1)) & set(urls(one(), 2))
    assert seed_for(0, "a", 1) != seed_for(0, "a", 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "is not valid YAML, line 1"),
        ("name: x", "servers: field required"),
        ("name: x\nservers: [{name: a, kind: vora}]\nworkloads: []", "kind vora needs model"),
        (
            "name: x\nservers: [{name: a, kind: url, url: 'http://h'}]\n"
            "workloads: [{name: w, concurrency: [1], output_tokens: 1}]",
            "output_tokens",
        ),
        (
            "name: x\nservers: [{name: a, kind: url, url: 'http://h'}]\ncompare: [[a, b]]\n"
            "workloads: [{name: w, concurrency: [1]}]",
            "no server is called b",
        ),
    ],
)
def test_bad_run_files(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert main(["run", str(file), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_generator_that_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(VoRAError, match="does this interpreter have vLLM"):
        Generator(tmp_path / "log", python="/bin/false")
