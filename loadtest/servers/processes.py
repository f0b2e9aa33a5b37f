"""CPU time and memory of a server's whole tree of processes."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

MIB = 2**20


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it; empty when it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """User and system time of a tree so far, with subprocesses that have ended."""
    total = 0.0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
            total += times.children_user + times.children_system
    return total


def rss_mib(pid: int) -> float:
    """Resident memory of a tree in MiB, shared pages counted in each process."""
    total = 0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / MIB


def pss_mib(pid: int) -> float | None:
    """Resident memory of a tree in MiB, shared pages counted once; None where it cannot be read."""
    total = 0
    for process in tree(pid):
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
        except (psutil.AccessDenied, AttributeError, OSError):
            return None
    return total / MIB


def gpu_mib(pid: int) -> float | None:
    """GPU memory of a tree in MiB as ``nvidia-smi`` reports it; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    pids = {process.pid for process in tree(pid)}
    total, found = 0.0, False
    for line in done.stdout.splitlines():
        owner, _, used = line.partition(",")
        if owner.strip().isdigit() and int(owner) in pids and used.strip().isdigit():
            total, found = total + float(used), True
    return total if found else None


def end_tree(pid: int, timeout_s: float = 60) -> None:
    """SIGTERM to the root, and SIGKILL to what is left of its tree after the timeout."""
    known = tree(pid)
    if known:
        with contextlib.suppress(psutil.NoSuchProcess):
            known[0].terminate()
        _, left = psutil.wait_procs(known, timeout=timeout_s)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)


@dataclass
class Used:
    """What a stretch of time cost a tree.

    Args:
        cpu_s: CPU seconds.
        peak_rss_mib: highest resident memory seen, sampled twice a second.
        pss_mib, gpu_mib: at the end, where they can be read.
    """

    cpu_s: float = 0.0
    peak_rss_mib: float = 0.0
    pss_mib: float | None = None
    gpu_mib: float | None = None


@contextlib.contextmanager
def watch(pid: int) -> Iterator[Used]:
    """Measure a tree during a block; the result is complete once the block has ended."""
    used = Used()
    before = cpu_seconds(pid)
    over = threading.Event()

    def sample() -> None:
        while True:
            used.peak_rss_mib = max(used.peak_rss_mib, rss_mib(pid))
            if over.wait(0.5):
                return

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield used
    finally:
        over.set()
        sampler.join()
        used.cpu_s = max(0.0, cpu_seconds(pid) - before)
        used.pss_mib = pss_mib(pid)
        used.gpu_mib = gpu_mib(pid)
