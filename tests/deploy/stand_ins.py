"""Images that stand in for those of public registries, built from Debian's archive."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from tests.deploy.daemon import CommandFailed, Daemon

_INCLUDED = "python3,python3-venv,python-is-python3,ca-certificates"
#: pip belongs to the base, as in the official images, and not to Debian's packages: the Dockerfile
#: removes it with itself.
_HOOKS = (
    'rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED',
    'chroot "$1" sh -ec "python3 \\$(echo /usr/share/python-wheels/pip-*.whl)/pip install --quiet'
    ' --root-user-action=ignore --no-index --find-links /usr/share/python-wheels pip setuptools"',
    'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/usr/share/doc/* "$1"/usr/share/man/*'
    ' "$1"/usr/share/locale/*',
)
_SERVERS = """\
FROM {base} AS servers
RUN apt-get update \\
    && apt-get install --yes --no-install-recommends prometheus redis-server wget \\
    && rm -rf /var/lib/apt/lists/* \\
    && install --directory --owner 65534 --group 65534 /prometheus
FROM servers AS prometheus
ENTRYPOINT ["prometheus"]
FROM servers AS redis
"""


def base(daemon: Daemon) -> str:
    """A stand-in for ``python:3.11-slim-bookworm``; its name. Takes a minute the first time."""
    recipe = hashlib.sha256("\n".join((_INCLUDED, *_HOOKS)).encode()).hexdigest()[:12]
    name = f"python:stand-in-{recipe}"
    if daemon.try_docker("image", "inspect", name).code == 0:
        return name
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "base.tar")
        hooks = [f"--customize-hook={hook}" for hook in _HOOKS]
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_INCLUDED}", *hooks]
        done = daemon.run([*command, "bookworm", str(archive)])
        if done.code != 0:
            raise CommandFailed(done.out[-3000:])
        daemon.docker("import", "--change", "ENV LANG=C.UTF-8", str(archive), name)
    return name


def servers(daemon: Daemon, base_image: str) -> dict[str, str]:
    """Stand-ins for Prometheus's and Redis's images: compose variables that name them."""
    names = {"prometheus": "prometheus:stand-in", "redis": "redis:stand-in"}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Dockerfile").write_text(_SERVERS.format(base=base_image))
        for target, name in names.items():
            # On the host's network, where the archive is reached as from this machine.
            daemon.docker("build", "--network=host", "--target", target, "--tag", name, folder)
    return {f"{target.upper()}_IMAGE": name for target, name in names.items()}
