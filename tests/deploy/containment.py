"""What a container is really allowed, asked from within, against what the compose file says."""

from __future__ import annotations

import json

from tests.deploy.compose import services
from tests.deploy.stack import Stack

_LOOK = """
import json, os, sys
writes = []
for folder in json.loads(sys.argv[1]):
    path = os.path.join(folder, "vora-probe")
    try:
        open(path, "w").close()
        os.unlink(path)
    except OSError:
        continue
    writes.append(folder)
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
size = lambda folder: os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize
sizes = {folder: size(folder) for folder in json.loads(sys.argv[2])}
print(json.dumps([writes, status, sizes]))
"""

_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30}


def _bytes(text: str) -> int:
    return int(text[:-1]) * _UNITS[text[-1].lower()] if text[-1].isalpha() else int(text)


def faults(stack: Stack, service: str) -> list[str]:
    """Where a running service is allowed more, or less, than the compose file says."""
    said = services(profiles=("cpu-multi", "shared-limits", "baseline-cpu"))[service]
    mounts = {entry.partition(":")[0]: entry.partition(":")[2] for entry in said["tmpfs"]}
    writable = [*mounts, "/dev/shm"]
    closed = ["/", "/opt", "/usr/local/bin", "/etc", "/var/tmp", "/home", "/run"]
    arguments = (json.dumps([*closed, *writable]), json.dumps(list(mounts)))
    done = stack.execute(service, "python", "-I", "-c", _LOOK, *arguments)
    if done.code != 0:
        return [f"nobody can look inside: {done.out}"]
    writes, status, sizes = json.loads(done.out.splitlines()[-1])
    seen = stack.daemon.inspect(stack.container(service))
    host = seen["HostConfig"]
    found: list[str] = []
    if set(writes) & set(closed):
        found.append(f"the root can be written: {sorted(set(writes) & set(closed))}")
    if set(writable) - set(writes):
        found.append(f"cannot write {sorted(set(writable) - set(writes))}")
    user = said["user"].split(":")[0]
    if set(status["Uid"].split()) != {user}:
        found.append(f"its user is {status['Uid'].split()[0]}, not {user}")
    for name in ("CapEff", "CapPrm", "CapBnd", "CapInh"):
        if int(status[name], 16):
            found.append(f"{name} is {status[name].strip()}")
    if status["NoNewPrivs"].strip() != "1":
        found.append("new privileges can be gained")
    if status["Seccomp"].strip() != "2":
        found.append("no filter of system calls")
    for folder, options in mounts.items():
        size = _bytes(options.partition("size=")[2].split(",")[0])
        if sizes[folder] != size:
            found.append(f"{folder} has {sizes[folder]} bytes, not {size}")
    limits = said["deploy"]["resources"]["limits"]
    if host["Memory"] != _bytes(limits["memory"]):
        found.append(f"its memory is bounded by {host['Memory']}")
    if host["PidsLimit"] != said["pids_limit"]:
        found.append(f"its processes are bounded by {host['PidsLimit']}")
    wanted = {f"{stack.project}_{name}" for name in said["networks"]}
    if set(seen["NetworkSettings"]["Networks"]) != wanted:
        found.append(f"its networks are {sorted(seen['NetworkSettings']['Networks'])}")
    return found


def default_route(stack: Stack, service: str) -> str | None:
    """The address through which a service reaches other networks, if it has one."""
    code = (
        "import socket\n"
        "for line in open('/proc/net/route'):\n"
        "    _, destination, gateway, *_ = line.split()\n"
        "    if destination == '00000000':\n"
        "        print(socket.inet_ntoa(int(gateway, 16).to_bytes(4, 'little')))"
    )
    return stack.python(service, code).out.strip() or None


def reaches(stack: Stack, service: str, url: str) -> bool:
    """Whether anything at a URL answers a service, whatever it says."""
    code = (
        "import urllib.error, urllib.request\n"
        f"try: urllib.request.urlopen({url!r}, timeout=5).read()\n"
        "except urllib.error.HTTPError: pass"
    )
    return stack.python(service, code).code == 0
