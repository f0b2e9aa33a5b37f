"""The audit's policy and the release script: what they let through, and what they refuse."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.deploy.compose import ROOT
from tests.deploy.dockerfile import TARGETS

#: Stands for pip-audit, which asks PyPI: prints what it is asked, and ends as it is told to.
FAKE_AUDIT = '#!/bin/sh\necho "$@"\nfor last; do :; done\ncat "$last"\nexit ${FAKE_CODE:-0}\n'


def audit(folder: Path, accepted: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    (folder / "accepted.txt").write_text(accepted)
    fake = folder / "pip-audit"
    fake.write_text(FAKE_AUDIT)
    fake.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "ACCEPTED": str(folder / "accepted.txt"),
        "FAKE_CODE": str(code),
    }
    command = [str(ROOT / ".github" / "audit.sh")]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_everything_pinned_is_audited(tmp_path: Path) -> None:
    done = audit(tmp_path, "# nothing\n\nCVE-2026-1 2999-01-01  # not reachable here\n")
    assert done.returncode == 0, done.stderr
    asked, *named = done.stdout.splitlines()
    for part in ("--strict", "engine-cpu.txt", "dev.txt", "--ignore-vuln CVE-2026-1"):
        assert part in asked
    install = (ROOT / "docker" / "requirements" / "install.sh").read_text()
    assert len(named) == 2
    for line in named:
        name, _, version = line.partition("==")
        assert f"{name.upper()}={version}" in install


@pytest.mark.parametrize(
    ("accepted", "code", "said"),
    [
        ("", 1, ""),
        ("CVE-2026-1 2020-01-01  # long ago\n", 0, "was accepted until 2020-01-01"),
        ("CVE-2026-1  # for ever\n", 0, "is not 'ID YYYY-MM-DD"),
        ("CVE-2026-1 2999-01-01 because\n", 0, "is not 'ID YYYY-MM-DD"),
    ],
)
def test_what_the_policy_does_not_allow(
    tmp_path: Path, accepted: str, code: int, said: str
) -> None:
    done = audit(tmp_path, accepted, code)
    assert done.returncode == 1
    assert said in done.stderr


def release(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(clone / "docker" / "release.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_release_is_refused_until_it_is_one(tmp_path: Path) -> None:
    clone = tmp_path / "clone"

    def git(*arguments: str) -> None:
        own = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *own, *arguments], cwd=clone, check=True, capture_output=True)

    clone.mkdir()
    for name in ("docker/Dockerfile", "docker/release.sh", ".github/release-notes.sh"):
        (clone / name).parent.mkdir(exist_ok=True)
        (clone / name).write_bytes((ROOT / name).read_bytes())
        (clone / name).chmod(0o755)
    (clone / "CHANGELOG.md").write_text("## Unreleased\n\n- Nothing.\n")
    git("init")
    for arguments, said in (((), "usage"), (("registry",), "usage")):
        done = release(clone, *arguments)
        assert (done.returncode, said in done.stderr) == (2, True)
    assert "uncommitted" in release(clone, "registry/").stderr
    git("add", "--all")
    git("commit", "--message", "x")
    assert "does not carry the tag" in release(clone, "registry/").stderr
    git("tag", "v0.1.0")
    done = release(clone, "registry/")
    assert done.returncode == 2
    assert "changelog" in done.stderr


def test_a_release_builds_every_image() -> None:
    script = (ROOT / "docker" / "release.sh").read_text()
    assert f"TARGETS:-{' '.join(TARGETS)}}}" in script
