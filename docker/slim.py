"""Make an environment smaller and its bytecode reproducible: run by the environment's own Python.

What nothing that runs here reads is removed: symbols for debuggers (vLLM's kernels for CPU are
three quarters symbols), C++ headers, test programs and test suites. Then every module is compiled
to bytecode: containers have a read-only root, so without it each start would compile anew.
"""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from py_compile import PycInvalidationMode

#: Below site-packages. torch.compile for CPU would need the headers, and a compiler, which images
#: do not have either.
UNUSED = ("torch/include", "torch/share", "torch/test", "torch/bin/*", "triton/backends/*/include")
#: Starts with torch when tensors are shared between processes by file name.
KEPT = {"torch_shm_manager"}


def unused(site: Path) -> Iterator[Path]:
    """What can go: ``UNUSED``, and test suites."""
    for pattern in UNUSED:
        yield from (path for path in site.glob(pattern) if path.name not in KEPT)
    for path in site.rglob("tests"):
        if path.is_dir() and not path.is_symlink() and (path / "__init__.py").is_file():
            yield path


def remove(path: Path) -> None:
    """Remove a file or a folder that may have gone with another one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def strip(site: Path) -> None:
    """Remove symbols that only debuggers read from shared libraries.

    Folders named ``*.libs`` stay as they are: their files were edited when the wheel was repaired,
    and stripping breaks some of them.
    """
    libraries = [
        str(path)
        for path in site.rglob("*.so*")
        if path.is_file()
        and not path.is_symlink()
        and not any(parent.name.endswith(".libs") for parent in path.parents)
    ]
    for start in range(0, len(libraries), 100):
        command = ["strip", "--strip-unneeded", "--preserve-dates"]
        subprocess.run([*command, *libraries[start : start + 100]], check=True)


def main() -> int:
    """Slim the environment that runs this."""
    site = Path(sysconfig.get_path("purelib"))
    for path in list(unused(site)):
        remove(path)
    strip(site)
    # Not by time: the same sources give the same bytes in every build.
    compileall.compile_dir(
        site,
        quiet=2,
        workers=os.cpu_count() or 1,
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
