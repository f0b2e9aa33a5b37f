"""A program of the evidence run that goes wrong on purpose: ``hang``, ``fail`` or ``noise``."""

import sys
import time

from benchmarks.gpu.programs import open_answers

write = open_answers()
write({"measured": 1})
if sys.argv[1] == "hang":
    time.sleep(60)
if sys.argv[1] == "fail":
    raise SystemExit(3)
if sys.argv[1] == "noise":
    sys.stdout.write("what a library prints\n")
    for line in sys.stdin:
        write({"echo": line.strip()})
