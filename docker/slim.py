"""Make an environment smaller and its bytecode reproducible: run by the environment's own Python.

What nothing that runs here reads is removed: symbols for debuggers (vLLM's kernels for CPU are
three quarters symbols), C++ headers, test programs and test suites. Then every module is compiled
to bytecode: containers have a read-only root, so without it each start would compile anew.
"""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from py_compile import PycInvalidationMode

#: Below site-packages. torch.compile for CPU would need the headers, and a compiler, which images
#: do not have either.
UNUSED = ("torch/include", "torch/share", "torch/test", "torch/bin/*", "triton/backends/*/include")
#: Starts with torch when tensors are shared between processes by file name.
KEPT = {"torch_shm_manager"}

#: Lists what is slimmed already: the requirements, when the wheel comes on top of them.
DONE = Path("/opt/slimmed.txt")


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


def libraries(site: Path) -> Iterator[Path]:
    """Shared libraries that can lose the symbols that only debuggers read.

    Folders named ``*.libs`` stay as they are: their files were edited when the wheel was repaired,
    and stripping breaks some of them.
    """
    for path in site.rglob("*.so*"):
        repaired = any(parent.name.endswith(".libs") for parent in path.parents)
        if path.is_file() and not path.is_symlink() and not repaired:
            yield path


def compile_modules(modules: Sequence[Path]) -> None:
    """Write bytecode that does not name its source's time: every build gives the same bytes.

    What an installer has compiled is compiled anew. A few modules are templates and do not compile.
    """
    compiled = partial(
        compileall.compile_file,
        quiet=2,
        force=True,
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )
    with ProcessPoolExecutor() as pool:
        list(pool.map(compiled, modules, chunksize=100))


def main() -> int:
    """Slim the environment that runs this; what an earlier call has slimmed stays as it is."""
    site = Path(sysconfig.get_path("purelib"))
    for path in list(unused(site)):
        remove(path)
    done = set(DONE.read_text().splitlines()) if DONE.exists() else set()
    modules = [path for path in site.rglob("*.py") if str(path) not in done]
    symbols = [path for path in libraries(site) if str(path) not in done]
    for start in range(0, len(symbols), 100):
        command = ["strip", "--strip-unneeded", "--preserve-dates"]
        subprocess.run([*command, *map(str, symbols[start : start + 100])], check=True)
    compile_modules(modules)
    with DONE.open("a") as file:
        file.writelines(f"{path}\n" for path in (*modules, *symbols))
    return 0


if __name__ == "__main__":
    sys.exit(main())
