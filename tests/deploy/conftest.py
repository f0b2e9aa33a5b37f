"""What the container tests share: one daemon, and images built once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.deploy import daemon as daemons
from tests.deploy import stand_ins
from tests.deploy.compose import ROOT
from tests.deploy.daemon import Daemon
from tests.deploy.packages import Packages
from tests.deploy.tools import unavailable

#: A small machine: what all containers together may hold.
MEMORY = 4 * 2**30
TAG = "0.1.0"
"""As in the compose file."""


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """A Docker daemon; its images and layers stay in the folder that VORA_CONTAINERS names."""
    data = os.environ.get("VORA_CONTAINERS")
    if not data:
        pytest.skip("containers run where VORA_CONTAINERS names a folder: make test-containers")
    reason = daemons.missing()
    if reason is not None:
        unavailable(reason)
    running = Daemon(Path(data).resolve(), MEMORY)
    try:
        running.open()
        yield running
    finally:
        running.close()


@dataclass
class Images:
    """This project's images, each built from the real Dockerfile when it is first asked for."""

    daemon: Daemon
    base: str
    packages: Packages
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each build took; little where layers were there."""

    def build(self, target: str, tag: str = TAG, context: Path = ROOT, *more: str) -> str:
        """Build a target.

        Args:
            target: Of ``docker/Dockerfile``.
            tag: Its tag.
            context: Where its sources are.
            more: Further arguments for ``docker build``.

        Returns:
            The image's name.
        """
        name = f"vora-serve-{target}:{tag}"
        if name in self.seconds and not more:
            return name
        began = time.monotonic()
        self.daemon.docker(
            "build",
            *self.packages.arguments,
            *("--build-arg", f"PYTHON_IMAGE={self.base}"),
            *("--file", str(context / "docker" / "Dockerfile")),
            *("--target", target, "--tag", name),
            *more,
            str(context),
        )
        self.seconds[name] = time.monotonic() - began
        return name

    def size(self, name: str) -> int:
        """An image's size in bytes, uncompressed, less its base's."""
        return int(self.daemon.inspect(name)["Size"]) - int(self.daemon.inspect(self.base)["Size"])


@pytest.fixture(scope="session")
def images(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """Builds."""
    with Packages(tmp_path_factory.mktemp("secrets")) as packages:
        yield Images(daemon, stand_ins.base(daemon), packages)


@pytest.fixture(scope="session")
def servers(daemon: Daemon, images: Images) -> dict[str, str]:
    """Variables that name the stand-ins for Prometheus's and Redis's images."""
    return stand_ins.servers(daemon, images.base)


@pytest.fixture(scope="session")
def record() -> Iterator[Callable[[str], None]]:
    """Takes measurements; they are printed at the end, and kept beside the data folder."""
    lines: list[str] = []
    yield lines.append
    data = os.environ.get("VORA_CONTAINERS")
    if data and lines:
        Path(data).with_name("containers.txt").write_text("\n".join(lines) + "\n")
        print("\n" + "\n".join(lines))  # noqa: T201
