"""What the compose file says of a container, done to a plain process by the kernel's own means.

A service that is contained sees a read-only root, the ``tmpfs`` of the compose file with their
sizes, ``/dev/shm`` of its ``shm_size``, and of root's home nothing; it runs as the compose file's
``user``, without capabilities and new privileges. Needs root, ``unshare`` and ``setpriv``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HOME = "/mnt/cache"
"""Stands for ``/cache``, the home in every image: there is no such directory here."""

_SCRIPT = r"""
set -eu
own=$1 writable=$2 user=$3 group=$4 keep=$5 shm=$6 passwd=$7 tmp=$8; shift 8
# Room for mount points; what lies under places that are covered below is held here meanwhile.
mount -t tmpfs -o mode=0755 tmpfs /mnt
mkdir /mnt/cache /mnt/own /mnt/keep
mount --bind "$own" /mnt/own
mount --bind "$keep" /mnt/keep
mount --bind "$passwd" /etc/passwd
mount -t tmpfs -o mode=0755 tmpfs /root
mount -t tmpfs -o "$shm" tmpfs /dev/shm
while [ "$1" != -- ]; do mount -t tmpfs -o "$2" tmpfs "$1"; shift 2; done
shift
mkdir -p "$own" "$keep"
mount --bind /mnt/own "$own"
mount --bind /mnt/keep "$keep"
[ "$writable" = yes ] || mount -o remount,bind,ro "$own"
[ "$tmp" = yes ] || mount -o remount,ro /tmp
mount -o remount,ro /mnt
mount -o remount,ro /root
mount -o remount,bind,ro /
cd /mnt/cache
exec setpriv --reuid "$user" --regid "$group" --clear-groups --no-new-privs \
    --bounding-set=-all --inh-caps=-all --pdeathsig KILL "$@"
"""


def possible() -> bool:
    """Whether this machine lets processes be contained."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))):
        return False
    probe = ["unshare", "--mount", "--", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False, timeout=30).returncode == 0


def _mount(text: str, user: str, group: str) -> tuple[str, str]:
    """A ``tmpfs`` entry: where, and mount options; the user's own where it names none."""
    path, _, options = text.partition(":")
    assert path.startswith("/")
    if path == "/cache":
        path = HOME
    elif not Path(path).is_dir():
        raise ValueError(f"no place here for {path}")
    return path, options or f"uid={user},gid={group}"


def contain(
    service: Mapping[str, Any], command: Sequence[str], own: Path, writable: bool
) -> list[str]:
    """The command, contained as its service's container would be.

    Args:
        service: From the compose file.
        command: To run; where it names files of ``own`` they have the same path inside.
        own: The service's directory: what is mounted into its container.
        writable: Whether it may write there, as into a volume.
    """
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    user, group = service["user"].split(":")
    entries = [entry for entry in service.get("tmpfs", ()) if entry.partition(":")[0] != "/data"]
    mounts = [part for entry in entries for part in _mount(entry, user, group)]
    tmp = "/tmp" in mounts
    if not tmp:  # covered all the same: others' files lie there, and perhaps ``own``
        mounts += ["/tmp", "mode=0755"]
    passwd = own / "passwd"
    lines = Path("/etc/passwd").read_text()
    passwd.write_text(f"{lines}vora:x:{user}:{group}::{HOME}:/usr/sbin/nologin\n")
    if writable:
        os.chown(own, int(user), int(group))
    own.chmod(0o755)
    shm = f"size={service.get('shm_size', '64m')},mode=1777"
    given = (
        str(own), "yes" if writable else "no", user, group, sys.base_prefix, shm, str(passwd),
        "yes" if tmp else "no", *mounts, "--",
    )  # fmt: skip
    return ["unshare", "--mount", "--", "sh", "-c", _SCRIPT, "contain", *given, *command]
