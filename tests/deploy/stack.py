"""A project of the compose file in real containers, and what tests ask of it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.deploy import compose
from tests.deploy.daemon import Daemon, Done
from tests.deploy.topology import free_port, wait_for

#: Seconds after which something hangs rather than takes its time.
LIMIT_S = 420.0


class Stack:
    """One project.

    Args:
        daemon: Where it runs.
        folder: Gets a copy of ``deploy/``, whose settings tests may change.
        project: Its name.
        environment: ``env/NAME.env``; None: no file at all.
        profiles: Further profiles.
        override: A further compose file's tree, merged into the compose file.
        variables: For the compose file.
    """

    def __init__(
        self,
        daemon: Daemon,
        folder: Path,
        project: str,
        environment: str | None = None,
        profiles: Iterable[str] = (),
        override: Mapping[str, Any] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.daemon = daemon
        self.deploy = folder / "deploy"
        self.project = project
        self.profiles = list(profiles)
        shutil.copytree(compose.DEPLOY, self.deploy)
        self.port = free_port()
        # No ``env_file`` where there is none: the defaults are what is tested.
        self.variables = {"GATEWAY_PORT": str(self.port), **(variables or {})}
        self._given = ["--project-name", project, "--file", "compose.yaml"]
        if override is not None:
            tree = {"version": "3.8", **override}
            (self.deploy / "override.yaml").write_text(yaml.safe_dump(tree))
            self._given += ["--file", "override.yaml"]
        if environment is not None:
            self._given += ["--env-file", f"env/{environment}.env"]

    @property
    def url(self) -> str:
        """The gateway, from this machine."""
        return f"http://127.0.0.1:{self.port}"

    def compose(self, *arguments: str) -> str:
        """``docker compose … ARGUMENTS``."""
        profiles = [part for profile in self.profiles for part in ("--profile", profile)]
        return self.daemon.compose(
            [*self._given, *profiles, *arguments], self.deploy, self.variables
        )

    def up(self, *services: str) -> None:
        """Create and start services, all of them without arguments, and wait for their health."""
        self.compose("up", "--detach", "--no-build", *services)
        for service in services or self.compose("ps", "--services").split():
            if self.find(service):
                self.wait_healthy(service)

    def down(self) -> None:
        """Remove containers, networks and volumes."""
        self.compose("down", "--volumes", "--timeout", "5")

    def find(self, service: str) -> str | None:
        """A service's container, if it has one."""
        label = f"label=com.docker.compose.service={service}"
        project = f"label=com.docker.compose.project={self.project}"
        out = self.daemon.docker("ps", "--all", "--quiet", "--filter", label, "--filter", project)
        return out.split()[0] if out.split() else None

    def container(self, service: str) -> str:
        """A service's container."""
        found = self.find(service)
        assert found is not None, f"{service} has no container"
        return found

    def state(self, service: str) -> dict[str, Any]:
        """``State`` of a service's container, and its ``RestartCount``."""
        seen = self.daemon.inspect(self.container(service))
        return {**seen["State"], "RestartCount": seen["RestartCount"]}

    def health(self, service: str) -> str:
        """``healthy``, ``unhealthy`` or ``starting``; the status of what has no health check."""
        state = self.state(service)
        return str(state.get("Health", {}).get("Status", state["Status"]))

    def wait_healthy(self, service: str, limit_s: float = LIMIT_S) -> None:
        """Wait until a service's own health check says so.

        Raises:
            TimeoutError: with the log's end.
        """
        try:
            wait_for(f"{service}'s health", lambda: self.health(service) in ("healthy",), limit_s)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.logs(service)[-3000:]}") from None

    def execute(self, service: str, *command: str) -> Done:
        """Run a program inside a service's container, as its user."""
        return self.daemon.try_docker("exec", self.container(service), *command)

    def python(self, service: str, code: str) -> Done:
        """Run Python code there."""
        return self.execute(service, "python", "-I", "-c", code)

    def logs(self, service: str) -> str:
        """What a service has printed."""
        return self.daemon.docker("logs", self.container(service))

    def reload(self) -> None:
        """Send SIGHUP to the gateway, as the runbook has it."""
        done = self.execute("gateway", "sh", "-c", "kill -HUP 1")
        assert done.code == 0, done.out

    def stop(self, service: str) -> float:
        """``docker compose stop``: how long it took, in seconds, less Compose's own start."""
        began = time.monotonic()
        self.compose("stop", service)
        done = time.monotonic() - began
        began = time.monotonic()
        self.compose("ps", "--services")
        return max(0.0, done - (time.monotonic() - began))

    def address(self, service: str, network: str) -> str:
        """A service's address in one of the project's networks."""
        networks = self.daemon.inspect(self.container(service))["NetworkSettings"]["Networks"]
        return str(networks[f"{self.project}_{network}"]["IPAddress"])

    def post(self, body: Mapping[str, Any], **headers: str) -> httpx.Response:
        """A chat through the gateway."""
        return httpx.post(
            f"{self.url}/v1/chat/completions",
            json=body,
            headers=headers,
            timeout=LIMIT_S,
            trust_env=False,
        )

    def ready(self) -> bool:
        """Whether the gateway says that an engine can take work."""
        try:
            return httpx.get(f"{self.url}/ready", timeout=10, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def wait_ready(self) -> None:
        """Wait for ``/ready``."""
        wait_for("an engine at the gateway", self.ready, LIMIT_S)

    def metric(self, name: str) -> dict[str, float]:
        """The gateway's samples of a metric, added up by the upstream they are of."""
        text = httpx.get(f"{self.url}/metrics", timeout=60, trust_env=False).text
        found: dict[str, float] = {}
        for line in text.splitlines():
            if line.startswith(name + "{") and 'upstream="' in line:
                upstream = line.split('upstream="')[1].split('"')[0]
                found[upstream] = found.get(upstream, 0.0) + float(line.rsplit(" ", 1)[1])
        return found


def json_lines(text: str) -> list[dict[str, Any]]:
    """Log lines as objects; what is no JSON raises."""
    return [json.loads(line) for line in text.splitlines() if line.strip()]
