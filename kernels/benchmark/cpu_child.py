"""One measurement of `cpu`, in a process of its own: `python -m ernie_m.kernels.benchmark.cpu_child REQUEST`.

REQUEST is JSON: the part, row and competitor, the folder, threads and runs. Prints the fields of `Sample` as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

# How many numbers of a result are compared.
NUMBERS = 1000


def cpu_seconds() -> float:
    """CPU time of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_bytes() -> int | None:
    """The peak of resident memory; not `ru_maxrss`, which on Linux starts with the parent's."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def numbers_of(result: Any) -> list[float]:
    """Up to NUMBERS numbers of a result, evenly spaced; none if it is None."""
    if result is None:
        return []
    flat = np.asarray(result, dtype=np.float64).ravel()
    return [float(x) for x in flat[:: max(len(flat) // NUMBERS, 1)]]


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Make the callable and call it: once, then once more to warm up, then `runs` times."""
    make = import_module(request["part"]).ROWS[request["row"]][request["who"]]
    call = make(Path(request["folder"]))
    walls, cpus, result = [], [], None
    for _ in range(request["runs"] + 2):
        wall, cpu = time.perf_counter(), cpu_seconds()
        result = call()
        cpus.append(cpu_seconds() - cpu)
        walls.append(time.perf_counter() - wall)
    numbers = numbers_of(result)
    return {"wall": walls[2:], "cpu": cpus[2:], "first_cpu": cpus[0], "peak_bytes": peak_bytes(), "numbers": numbers}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
