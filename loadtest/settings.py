"""What a run file says: servers, engine settings, workloads, repeats, thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vora_core import typed_yaml

Positive = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSpec(_Strict):
    """One server.

    Args:
        name: how the report calls it, and the model's name in requests to a server started here.
        kind: ``vora`` (``vora-serve engine``), ``stock`` (vLLM alone), ``serve`` (``vora-serve
            serve``: gateway and engine), ``gateway`` (``vora-serve serve --upstream``, in front of
            ``upstream``), ``delay`` (a proxy that holds every request to ``upstream`` back),
            ``url`` (runs already).
        model: checkpoint, for a server started here; the model's name, for ``url``.
        upstream: name of another server of the run.
        url: base URL, without ``/v1``.
        delay_ms: of ``delay``.
        args: flags beyond those all engines of the run get.
        env: environment beyond what all get.
        python: interpreter, when the engine lives in another environment than this one.
        api_key_env: environment variable that holds the key, for ``url``.
        api_key_file: file that holds the key, for ``url``; empty: no key.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    kind: Literal["vora", "stock", "serve", "gateway", "delay", "url"]
    model: str | None = None
    upstream: str | None = None
    url: Annotated[str, Field(pattern=r"^https?://[^/]+$")] | None = None
    delay_ms: Annotated[float, Field(gt=0, le=10_000)] | None = None
    args: list[str] = []
    env: dict[str, str] = {}
    python: str | None = None
    api_key_env: str | None = None
    api_key_file: Path | None = None

    @model_validator(mode="after")
    def _complete(self) -> ServerSpec:
        needs = {
            "vora": ("model",),
            "stock": ("model",),
            "serve": ("model",),
            "gateway": ("upstream",),
            "delay": ("upstream", "delay_ms"),
            "url": ("url",),
        }
        for key in needs[self.kind]:
            if getattr(self, key) is None:
                raise ValueError(f"server {self.name}: kind {self.kind} needs {key}")
        return self


class EngineSettings(_Strict):
    """What every engine of the run gets, so that only the model differs.

    Args:
        args: vLLM's flags.
        env: environment variables.
        start_timeout_s: until a server has to answer.
    """

    args: list[str] = []
    env: dict[str, str] = {}
    start_timeout_s: Annotated[float, Field(gt=0)] = 900


class Images(_Strict):
    """The images of a workload's requests.

    Args:
        sizes: [width, height] in pixels; each size is a point of its own.
        mixed: draw every image's size from ``sizes`` instead.
        count: images in a request.
        repeated: the same images in all requests of a repeat, with new questions; else every
            image is new, which no cache knows.
        format: how they are sent.
    """

    sizes: Annotated[list[tuple[Positive, Positive]], Field(min_length=1)] = [(448, 448)]
    mixed: bool = False
    count: Positive = 1
    repeated: bool = False
    format: Literal["jpeg", "png"] = "jpeg"


class ServiceLevel(_Strict):
    """What a request must keep to count as good; milliseconds.

    Args:
        share: of requests that must be good for a rate to be met.
    """

    ttft_ms: Annotated[float, Field(gt=0)] | None = None
    tpot_ms: Annotated[float, Field(gt=0)] | None = None
    e2e_ms: Annotated[float, Field(gt=0)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] = 0.9


class Workload(_Strict):
    """A kind of traffic, measured at one or several points.

    Args:
        name: in the report.
        concurrency: requests under way at a time (closed loop); each is a point.
        rates: requests per second (open loop, Poisson arrivals); each is a point. ``auto``: shares
            ``auto_shares`` of the highest throughput that a concurrency point of this workload
            reached on any server.
        requests: per point, server and repeat.
        warmup: requests before the first repeat that are not counted.
        text_tokens: words of a question, each a token in common tokenizers.
        output_tokens: length of every answer (``ignore_eos``).
        images: none: text only.
        level: service level for goodput.
        servers: names of those that take part; all when absent.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    concurrency: list[Positive] = []
    rates: list[Annotated[float, Field(gt=0)]] | Literal["auto"] = []
    auto_shares: list[Annotated[float, Field(gt=0)]] = [0.3, 0.6, 0.9, 1.2]
    requests: Positive = 8
    warmup: Annotated[int, Field(ge=0)] = 1
    text_tokens: Positive = 32
    output_tokens: Annotated[int, Field(ge=2)] = 16
    images: Images | None = None
    level: ServiceLevel | None = None
    servers: list[str] | None = None

    @model_validator(mode="after")
    def _some_point(self) -> Workload:
        if not self.concurrency and not self.rates:
            raise ValueError(f"workload {self.name}: give concurrency or rates")
        if self.rates == "auto" and not self.concurrency:
            raise ValueError(f"workload {self.name}: rates: auto needs concurrency to start from")
        return self


class Thresholds(_Strict):
    """When a report's exit status is 1.

    Args:
        max_ratio: highest first/second ratio of a measure, by ``WORKLOAD.MEASURE``; it is broken
            when the whole confidence interval lies above.
        allow_errors: whether failed requests are let pass.
    """

    max_ratio: dict[str, float] = {}
    allow_errors: bool = False


class RunSettings(_Strict):
    """A run file.

    Args:
        name: of the run, in the report.
        servers: at least one.
        compare: pairs [first, second] whose ratios first/second are reported; by default the
            first server against each other one.
        engine: for all servers that are started.
        workloads: what is measured.
        repeats: rounds of every point; each asks every server once.
        order: ``abab`` asks them in the same order each round, ``abba`` turns it round each time,
            which takes a steady drift out of the ratios altogether.
        together: keep all servers running at once; otherwise there is one at a time, started anew
            for each round (for models that do not fit into memory together).
        seed: of images, texts and arrival times.
        timeout_s: for one round of one server.
    """

    name: str
    servers: Annotated[list[ServerSpec], Field(min_length=1)]
    compare: list[tuple[str, str]] = []
    engine: EngineSettings = EngineSettings()
    workloads: Annotated[list[Workload], Field(min_length=1)]
    repeats: Positive = 6
    order: Literal["abab", "abba"] = "abab"
    together: bool = True
    seed: int = 0
    timeout_s: Annotated[float, Field(gt=0)] = 1800
    thresholds: Thresholds = Thresholds()

    @model_validator(mode="after")
    def _names(self) -> RunSettings:
        names = [server.name for server in self.servers]
        for kind, given in (("server", names), ("workload", [w.name for w in self.workloads])):
            if len(set(given)) < len(given):
                raise ValueError(f"two {kind}s have one name")
        used = [server.upstream for server in self.servers if server.upstream]
        used += [name for pair in self.compare for name in pair]
        used += [name for workload in self.workloads for name in workload.servers or []]
        for name in used:
            if name not in names:
                raise ValueError(f"no server is called {name}")
        for at, server in enumerate(self.servers):
            if server.upstream is not None and server.upstream not in names[:at]:
                raise ValueError(f"server {server.name} must stand below its upstream")
        return self

    def pairs(self) -> list[tuple[str, str]]:
        """The pairs whose ratios are reported."""
        if self.compare:
            return list(self.compare)
        first, *others = [server.name for server in self.servers]
        return [(first, other) for other in others]


def load_settings(path: Path, variables: dict[str, str] | None = None) -> RunSettings:
    """Read a run file; ``{NAME}`` in it is replaced by a variable's value.

    Raises:
        ConfigError: it cannot be read, or a key or a value is wrong.
    """
    return typed_yaml.load(RunSettings, path, subject="run file", variables=variables)


def parse_settings(tree: Any) -> RunSettings:
    """Settings from a tree of plain values.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    return typed_yaml.validate(RunSettings, tree, subject="run file")
