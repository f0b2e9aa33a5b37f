"""A Docker daemon of the tests' own: its socket, data folder and cgroup, and no other's.

Needs root and Debian's ``docker.io``; nothing of a daemon that runs already is touched. What it
changes on the machine, firewall rules and IP forwarding, is put back when it stops.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
#: Unlikely to be anybody's network; each of compose's networks gets a part.
_POOL = "base=10.231.0.0/16,size=24"
_LIMIT_S = 900.0


class CommandFailed(AssertionError):
    """A command whose exit code was not 0; with what it printed."""


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    """Both streams together."""


def client() -> str | None:
    """Debian's ``docker``, which has BuildKit built in; another one on PATH may not."""
    debian = Path("/usr/bin/docker")
    return str(debian) if debian.exists() else shutil.which("docker")


def missing() -> str | None:
    """Why no daemon can run here, in a sentence; None where one can."""
    if os.geteuid() != 0:
        return "a Docker daemon of the tests' own needs root"
    needed = {
        "dockerd": "docker.io",
        "ip": "iproute2",
        "iptables-save": "iptables",
        "mmdebstrap": "mmdebstrap",
    }
    for program, package in needed.items():
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian's package {package})"
    if client() is None or _compose() is None:
        return "docker or docker-compose is not installed (Debian's docker.io, docker-compose)"
    return None


def _compose() -> list[str] | None:
    """The command of Compose: version 2 where the client has it, else Debian's 1.29."""
    docker = client()
    if docker is not None:
        command = [docker, "compose", "version"]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return [docker, "compose"]
    found = shutil.which("docker-compose")
    return [found] if found else None


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


def end_with_parent() -> None:
    """Ask the kernel to stop this process with the tests, should they be killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


class CGroup:
    """A cgroup that bounds all containers together, as a small machine would.

    Args:
        memory: Bytes.
    """

    name = "vora-tests"

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._folder = Path("/sys/fs/cgroup/memory", self.name)
        self._second = not Path("/sys/fs/cgroup/memory").is_dir()
        if self._second:
            self._folder = Path("/sys/fs/cgroup", self.name)

    def open(self) -> None:
        """Make it."""
        self._folder.mkdir(exist_ok=True)
        self.bound(self._memory)

    def bound(self, memory: int) -> None:
        """Bound it anew, in bytes."""
        limit = "memory.max" if self._second else "memory.limit_in_bytes"
        (self._folder / limit).write_text(str(memory))

    def held(self) -> int:
        """Memory that all containers hold together, in bytes, less caches of files."""
        lines = (self._folder / "memory.stat").read_text().splitlines()
        counts = {name: int(value) for name, value in map(str.split, lines)}
        names = ("anon", "shmem") if self._second else ("total_rss", "total_shmem")
        return sum(counts[name] for name in names)

    def close(self) -> None:
        """Remove it, if nothing holds on to it."""
        for folder in Path("/sys/fs/cgroup").glob(f"*/{self.name}"):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            self._folder.rmdir()


class Daemon:
    """The daemon, and commands to it.

    Args:
        data: Images, layers and the build cache; may hold those of an earlier run.
        memory: What all containers together may hold, in bytes.
    """

    def __init__(self, data: Path, memory: int) -> None:
        self.data = data
        self.cgroup = CGroup(memory)
        # A socket's path may have 107 characters, so it does not go below ``data``.
        self._run = Path(tempfile.mkdtemp(prefix="vora-docker-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._rules: bytes | None = None
        self._forward = ""
        self._bridge = f"vora{os.getpid()}"
        self.environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{self._run}/docker.sock",
            "DOCKER_BUILDKIT": "1",
            "BUILDKIT_PROGRESS": "plain",
            "COMPOSE_HTTP_TIMEOUT": "600",
            "COMPOSE_DOCKER_CLI_BUILD": "1",
        }
        for name in ("DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "COMPOSE_FILE", "COMPOSE_PROFILES"):
            self.environment.pop(name, None)

    # ------------------------------------------------------------------ life

    def open(self) -> None:
        """Start it for the first time."""
        self.data.mkdir(parents=True, exist_ok=True)
        self._forward = _FORWARD.read_text()
        if not Path("/var/run/docker.sock").exists():  # another daemon's rules stay as they are
            self._rules = subprocess.run(["iptables-save"], capture_output=True, check=True).stdout
        for left in Path("/sys/class/net").glob("vora[0-9]*"):  # of runs that were killed
            if not Path("/proc", left.name.removeprefix("vora")).exists():
                _ip("link", "del", left.name)
        # A bridge of its own: with "none", dockerd removes that of a daemon that runs already.
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", "10.232.0.1/24", "dev", self._bridge)
        self.cgroup.open()
        self.start()
        self._clear()  # what a run that was killed has left would start again

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            "dockerd",
            *("--data-root", str(self.data)),
            *("--exec-root", str(self._run / "exec")),
            *("--pidfile", str(self._run / "pid")),
            *("--host", self.environment["DOCKER_HOST"]),
            *("--cgroup-parent", f"/{CGroup.name}"),
            *("--containerd-namespace", CGroup.name),
            *("--containerd-plugins-namespace", f"{CGroup.name}-plugins"),
            *("--bridge", self._bridge),
            *("--default-address-pool", _POOL),
        ]
        with (self._run / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        until = time.monotonic() + 120
        while self.try_docker("version").code != 0:
            if self._process.poll() is not None or time.monotonic() > until:
                raise CommandFailed((self._run / "log").read_text()[-3000:])
            time.sleep(0.3)

    def stop(self) -> None:
        """Stop it as a machine that shuts down would: it stops its containers."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(180)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def close(self) -> None:
        """Stop it for good: no container, network or rule is left; images are."""
        if self._process is not None:
            self._clear()
        self.stop()
        if self._rules is not None:
            subprocess.run(["iptables-restore"], input=self._rules, check=True)
        if self._forward:
            _FORWARD.write_text(self._forward)
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", self._bridge)
        self.cgroup.close()
        shutil.rmtree(self._run, ignore_errors=True)

    def _clear(self) -> None:
        containers = self.try_docker("ps", "--all", "--quiet").out.split()
        if containers:
            self.try_docker("rm", "--force", "--volumes", *containers)
        for kind in ("network", "volume"):
            self.try_docker(kind, "prune", "--force")

    # ------------------------------------------------------------------ commands

    def run(
        self,
        command: Sequence[str],
        more: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        limit_s: float = _LIMIT_S,
    ) -> Done:
        """Run a program that talks to this daemon."""
        done = subprocess.run(
            list(command),
            env={**self.environment, **(more or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
        return Done(done.returncode, done.stdout)

    def try_docker(self, *arguments: str) -> Done:
        """``docker …``, whatever comes of it."""
        docker = client()
        assert docker is not None
        return self.run([docker, *arguments])

    def docker(self, *arguments: str) -> str:
        """``docker …``.

        Raises:
            CommandFailed
        """
        done = self.try_docker(*arguments)
        if done.code != 0:
            raise CommandFailed(f"docker {' '.join(arguments)}\n{done.out[-6000:]}")
        return done.out

    def inspect(self, name: str) -> dict[str, Any]:
        """What the daemon knows of a container or an image."""
        found: dict[str, Any] = json.loads(self.docker("inspect", name))[0]
        return found

    def compose(
        self, arguments: Sequence[str], cwd: Path, more: Mapping[str, str] | None = None
    ) -> str:
        """``docker compose …`` in a directory.

        Raises:
            CommandFailed
        """
        command = _compose()
        assert command is not None
        done = self.run([*command, *arguments], more, cwd)
        if done.code != 0:
            raise CommandFailed(f"compose {' '.join(arguments)}\n{done.out[-6000:]}")
        return done.out
