"""The compose file's services as plain processes: the same commands, other addresses.

Each service runs with an environment of its own, is restarted when it dies, as compose would, and
listens on loopback, or, for engines where network namespaces can be had, in a namespace with no
way out. Where this machine allows it, each is contained as the compose file says (see
:mod:`tests.deploy.container`). What stands for what:

=====================  ===================================================
in containers          here
=====================  ===================================================
an image's entry       the same program of this checkout or of Debian
a service's name       127.0.0.1, or the namespace's end of a veth pair
a service's port       a free one
a mounted file         a copy in a directory of the service's own
/opt/vora/demo         the checkpoint given
/cache                 /mnt/cache
=====================  ===================================================
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.deploy import compose, container

BIN = Path(sys.executable).parent
_SUBNET = "10.231.77"

#: Times that a container would be given, made this much longer for a busy machine.
PATIENCE = 10


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, condition: Callable[[], bool], limit_s: float) -> None:
    """Wait until the condition holds.

    Raises:
        TimeoutError
    """
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not come about within {limit_s:.0f} s")
        time.sleep(0.2)


def _die_with_parent() -> None:
    """Ask the kernel to end this process with the tests, should they be killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Namespace:
    """A network namespace that reaches this machine's end of a veth pair, and nothing else."""

    def __init__(self) -> None:
        self.name = f"vora-test-{os.getpid()}"
        self.device = f"vt{os.getpid()}"
        self.here = f"{_SUBNET}.1"
        self.there = f"{_SUBNET}.2"

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)

    def open(self) -> bool:
        """Make it; False where this machine lets nobody."""
        if shutil.which("ip") is None or os.geteuid() != 0:
            return False
        self._sweep()
        peer = f"{self.device}p"
        try:
            self._ip("netns", "add", self.name)
            self._ip("link", "add", self.device, "type", "veth", "peer", "name", peer)
            self._ip("link", "set", peer, "netns", self.name)
            self._ip("addr", "add", f"{self.here}/30", "dev", self.device)
            self._ip("link", "set", self.device, "up")
            self._ip("-n", self.name, "addr", "add", f"{self.there}/30", "dev", peer)
            self._ip("-n", self.name, "link", "set", peer, "up")
            self._ip("-n", self.name, "link", "set", "lo", "up")
        except (OSError, subprocess.SubprocessError):
            self.close()
            return False
        return True

    def _sweep(self) -> None:
        """Take away what runs that were killed have left."""
        for path in Path("/run/netns").glob("vora-test-*"):
            pid = path.name.rpartition("-")[2]
            if not Path("/proc", pid).exists():
                command = ["ip", "netns", "pids", path.name]
                found = subprocess.run(command, capture_output=True, text=True, check=False)
                for left in map(int, found.stdout.split()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(left, signal.SIGKILL)
                self._remove(path.name, f"vt{pid}")

    def close(self) -> None:
        """Take it away, and the pair with it."""
        self._remove(self.name, self.device)

    def _remove(self, name: str, device: str) -> None:
        for arguments in (("netns", "del", name), ("link", "del", device)):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                self._ip(*arguments)

    def inside(self, command: list[str]) -> list[str]:
        """The command, run inside."""
        return ["ip", "netns", "exec", self.name, *command]


@dataclass
class Service:
    """One service: how it is started, and the process that it is now."""

    name: str
    command: list[str]
    environment: dict[str, str]
    host: str
    port: int
    log: Path
    wanted: bool = False
    left: list[str] = field(default_factory=list)
    """Processes that outlived its last stop, by their command lines."""
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def spawn(self) -> None:
        """Start the process, in a session of its own, as a container would be."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.starts += 1

    def others(self) -> list[str]:
        """Command lines of what runs in its session beside its process, the dead left out."""
        assert self.process is not None
        found: list[str] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if (
                    process.pid != self.process.pid
                    and os.getsid(process.pid) == self.process.pid
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(" ".join(process.cmdline()))
        return found

    def signal(self, number: int, group: bool = False) -> None:
        """Send a signal to the process, or to it and all its children."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)


class Topology:
    """All services of an environment and profiles, but Grafana.

    Args:
        environment: ``env/NAME.env``.
        profiles: Further profiles.
        checkpoint: What engines serve in place of the image's demo.
        directory: For logs, settings and data.
        more: Further environment variables by service.
    """

    def __init__(
        self,
        environment: str,
        profiles: tuple[str, ...],
        checkpoint: Path,
        directory: Path,
        more: Mapping[str, Mapping[str, str]],
    ) -> None:
        self.directory = directory
        self._checkpoint = checkpoint
        self._more = more
        self._given = compose.services(compose.env_of(environment), profiles)
        self._given.pop("grafana", None)
        self.namespace: Namespace | None = Namespace()
        if not self.namespace.open():
            self.namespace = None
        self.contained = container.possible()
        self.services: dict[str, Service] = {}
        self._addresses = {name: self._address(name) for name in self._given}
        self._closing = False
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def _address(self, name: str) -> tuple[str, int]:
        if name.startswith("engine") and self.namespace is not None:
            number = [n for n in self._given if n.startswith("engine")].index(name)
            return self.namespace.there, 8001 + number
        return "127.0.0.1", free_port()

    # ------------------------------------------------------------------ from compose to processes

    def _localise(self, text: str) -> str:
        """Names and ports of services, as they are here."""
        ports = {"redis": 6379, "gateway": 8000}
        # Longer names first: engine-cpu-1 begins with engine-cpu.
        for name in sorted(self._addresses, key=len, reverse=True):
            host, port = self._addresses[name]
            inside = ports.get(name, 8001)
            text = text.replace(f"{name}:{inside}", f"{host}:{port}")
        return text

    def gateway_config(self) -> Path:
        """The gateway's settings here, which tests change and reload."""
        return self.directory / "gateway" / "settings.yaml"

    def _gateway(self, name: str, service: Mapping[str, Any]) -> list[str]:
        source = compose.gateway_settings(service)
        tree = yaml.safe_load(self._localise(source.read_text()))
        host, port = self._addresses[name]
        tree["server"] |= {"host": host, "port": port}
        path = self.gateway_config()
        path.write_text(yaml.safe_dump(tree))
        command = list(service["command"])
        command[command.index("--config") + 1] = str(path)
        return [str(BIN / "vora-serve"), *command]

    def _engine(self, name: str, service: Mapping[str, Any]) -> list[str]:
        host, port = self._addresses[name]
        command = list(service["command"])
        command[command.index("--host") + 1] = host
        command[command.index("--port") + 1] = str(port)
        model = command.index("--model") + 1
        assert command[model] == "/opt/vora/demo"
        wait = command.index("--shutdown-timeout") + 1
        command[wait] = str(PATIENCE * int(command[wait]))
        command[model] = str(self._checkpoint)
        return [str(BIN / "vora-serve"), *command]

    def _prometheus(self, name: str, service: Mapping[str, Any]) -> list[str]:
        home = self.directory / name
        shutil.copytree(compose.DEPLOY / "prometheus" / "rules", home / "rules")
        token = home / "token"
        token.touch()
        tree = yaml.safe_load((compose.DEPLOY / "prometheus" / "prometheus.yml").read_text())
        tree["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for job in tree["scrape_configs"]:
            for dns in job.pop("dns_sd_configs", ()):
                # What the name server would say: services that run, by address.
                known = [n for n in dns["names"] if n in self._addresses]
                targets = ["{}:{}".format(*self._addresses[n]) for n in known]
                job["static_configs"] = [{"targets": targets}]
        text = self._localise(yaml.safe_dump(tree)).replace(
            "/run/secrets/metrics_token", str(token)
        )
        host, port = self._addresses[name]
        (home / "prometheus.yml").write_text(text.replace("127.0.0.1:9090", f"{host}:{port}"))
        command = [
            argument.replace("/etc/prometheus/prometheus.yml", str(home / "prometheus.yml"))
            for argument in service["command"]
        ]
        command = [argument.replace("=/prometheus", f"={home / 'data'}") for argument in command]
        return ["prometheus", *command, f"--web.listen-address={host}:{port}"]

    def _redis(self, name: str, service: Mapping[str, Any]) -> list[str]:
        host, port = self._addresses[name]
        data = str(self.directory / name)
        return [*service["command"], "--bind", host, "--port", str(port), "--dir", data]

    def _command(self, name: str, service: Mapping[str, Any]) -> list[str]:
        own = self.directory / name
        own.mkdir()
        if name.startswith("gateway"):
            command = self._gateway(name, service)
        elif name.startswith("engine"):
            command = self._engine(name, service)
        else:
            command = {"prometheus": self._prometheus, "redis": self._redis}[name](name, service)
        if self.contained:
            # Volumes, and Redis's /data.
            command = container.contain(service, command, own, name in ("prometheus", "redis"))
        if name.startswith("engine") and self.namespace is not None:
            command = self.namespace.inside(command)
        return command

    def _environment(self, name: str, service: Mapping[str, Any]) -> dict[str, str]:
        """What the compose file says, and nothing of this process's own."""
        own = str(self.directory / name)
        result = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        result |= {"HOME": container.HOME} if self.contained else {"HOME": own, "TMPDIR": own}
        for key, value in service.get("environment", {}).items():
            result[key] = self._localise(str(value))
        return {**result, **self._more.get(name, {})}

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Start everything and wait until all of it answers."""
        for name, service in self._given.items():
            host, port = self._addresses[name]
            self.services[name] = Service(
                name,
                self._command(name, service),
                self._environment(name, service),
                host,
                port,
                self.directory / f"{name}.log",
            )
        self._keeper.start()
        for name in self.services:
            self.up(name)
        for name in self.services:
            self.wait_healthy(name)

    def up(self, name: str) -> None:
        """Start a service."""
        service = self.services[name]
        service.spawn()
        service.wanted = True

    def down(self, name: str) -> int:
        """Stop a service as compose does: SIGTERM, its grace period, SIGKILL.

        Returns:
            Its exit code.
        """
        service = self.services[name]
        service.wanted = False
        assert service.process is not None
        service.signal(signal.SIGTERM)
        given = self._given[name].get("stop_grace_period", "10s")
        try:
            code = service.process.wait(PATIENCE * float(given.removesuffix("s")))
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        # Helpers that end by themselves once their parent is gone, as Python's own do, may.
        with contextlib.suppress(TimeoutError):
            wait_for("the end of its children", lambda: not service.others(), 10)
        service.left = service.others()
        service.signal(signal.SIGKILL, group=True)
        service.process.wait()
        return code

    def kill(self, name: str) -> None:
        """Kill all of a service's processes, as losing its container would; it is restarted."""
        self.services[name].signal(signal.SIGKILL, group=True)

    def healthy(self, name: str) -> bool:
        """Whether the service answers as its health check asks."""
        service = self.services[name]
        path = {"prometheus": "/-/ready"}.get(name, "/health")
        try:
            if name == "redis":
                with socket.create_connection((service.host, service.port), 2) as connection:
                    connection.sendall(b"PING\r\n")
                    return connection.recv(16).startswith(b"+PONG")
            return httpx.get(service.url + path, timeout=5, trust_env=False).status_code == 200
        except (OSError, httpx.HTTPError):
            return False

    def wait_healthy(self, name: str, limit_s: float = 600) -> None:
        """Wait for a service's health.

        Raises:
            TimeoutError: with the log's end.
        """
        try:
            wait_for(f"{name}'s health", lambda: self.healthy(name), limit_s)
        except TimeoutError as error:
            log = self.services[name].log.read_text(errors="replace")[-3000:]
            raise TimeoutError(f"{error}; its log ends:\n{log}") from None

    def _keep(self) -> None:
        """``restart: unless-stopped``."""
        while not self._closing:
            for service in list(self.services.values()):
                if service.wanted and service.process and service.process.poll() is not None:
                    service.spawn()
            time.sleep(0.5)

    def close(self) -> None:
        """Stop everything."""
        self._closing = True
        if self._keeper.is_alive():
            self._keeper.join()
        running = [service for service in self.services.values() if service.process is not None]
        for service in running:
            service.wanted = False
            service.signal(signal.SIGTERM)
        for service in running:
            assert service.process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                service.process.wait(20)
            service.signal(signal.SIGKILL, group=True)
            service.process.wait()
        if self.namespace is not None:
            self.namespace.close()
