"""Judges the whole catalogue and writes the table into kernels/checking/README.md.

    make judge                                  every row, on two processes
    cd tests && python -m judging.table --operation NAME    the rows of an operation, beside those committed
    cd tests && python -m judging.table --render    the README again, from the committed results

Finished rows are kept under `build/judging`, by a hash of what they depend on, so that a run that was stopped goes on
where it was. The results of a full run are `results.json`, beside this file.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

from ernie_m.kernels.benchmark.cpu import processor
from ernie_m.kernels.checking.examples import EXAMPLES
from ernie_m.kernels.checking.operations import OPERATIONS

from .faults import FAULTS
from .field import TESTS
from .judge import SEEDS, judge_fault, judge_right
from .right import RIGHTS

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "kernels" / "checking" / "README.md"
RESULTS = Path(__file__).resolve().parent / "results.json"
MARKERS = ("<!-- judging: written by tests/judging/table.py -->\n", "<!-- judging: end -->\n")
# Of the packages whose arithmetic is judged or judges.
PACKAGES = ("numpy", "torch", "triton", "hypothesis")
OURS = {
    "check": f"`check(function, op)`; right functions at {SEEDS} seeds",
    "quick": "`check(function, op, quick=True)`",
}
KINDS: dict[str, tuple[dict[str, Any], Callable[[str], dict[str, Any]]]] = {
    "faults": (FAULTS, judge_fault),
    "right": (RIGHTS, judge_right),
}


@functools.cache
def fingerprint() -> str:
    """A hash of what rows depend on: the check, the kernels, the catalogue, and versions."""
    folders = (ROOT / "kernels", ROOT / "kernels" / "checking", ROOT / "kernels" / "runtime", RESULTS.parent)
    files = [path for folder in folders for path in folder.glob("*.py") if path.name != "table.py"]
    files += (ROOT / "tests").glob("planted*.py")
    found = hashlib.sha256(repr([*_versions().items(), platform.machine()]).encode())
    for path in sorted(files):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def row(kind: str, name: str) -> dict[str, Any]:
    """One row, "faults" or "right": kept from an earlier run, or judged now."""
    kept = ROOT / "build" / "judging" / fingerprint() / f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    found = KINDS[kind][1](name)
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(kept)
    return found


def _named(key: tuple[str, str]) -> tuple[tuple[str, str], dict[str, Any]]:
    return key, row(*key)


def run(processes: int, operation: str | None = None) -> dict[str, Any]:
    """Every row, or those of an operation, on that many processes; says which are done."""
    # Neighbours share an operation, and with it the inputs of the field's tests.
    keys = [
        (kind, name)
        for kind, (catalogue, _) in KINDS.items()
        for name in sorted(catalogue)
        if operation in (None, catalogue[name].op)
    ]
    rows: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for done, ((kind, name), found) in enumerate(pool.imap_unordered(_named, keys), 1):
            rows[kind][name] = found
            print(f"{done} of {len(keys)}: {name} ({found['seconds']} s of CPU)", flush=True)
    return {"provenance": provenance(), **{kind: dict(sorted(found.items())) for kind, found in rows.items()}}


def renewed(before: dict[str, Any], operation: str, found: dict[str, Any]) -> dict[str, Any]:
    """Earlier results with the rows of an operation as they were found now, and when that was."""
    others = {
        kind: {name: x for name, x in before[kind].items() if name in catalogue and catalogue[name].op != operation}
        for kind, (catalogue, _) in KINDS.items()
    }
    rows = {kind: dict(sorted({**others[kind], **found[kind]}.items())) for kind in KINDS}
    later = {**before.get("later", {}), operation: found["provenance"]}
    return {"provenance": before["provenance"], "later": later, **rows}


def _versions() -> dict[str, str]:
    return {"Python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def provenance() -> dict[str, str]:
    """What the rows were judged with and on."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {"processor": processor(), **_versions(), "commit after": git.stdout.strip(), "sources": fingerprint()}


def render(results: dict[str, Any]) -> str:
    """The generated part of the README."""
    return "\n".join([*_summary(results), *_rights(results), *_faults(results)]) + "\n"


def _alarm(results: dict[str, Any], op: str, test: str) -> bool:
    """Whether a test refuses the right function that the faults of an operation are made from."""
    found = results["right"][f"{op}: torch in float32"]
    return bool(found["check"] if test in OURS else found["field"][test])


def _verdicts(results: dict[str, Any], kind: str, test: str) -> list[tuple[str, bool]]:
    """Of the functions that a test could be given, their operation and whether it refuses them."""
    key = "check" if kind == "right" and test in OURS else test
    catalogue = KINDS[kind][0]
    rows = [(catalogue[name].op, x[key] if key in OURS else x["field"][key]) for name, x in results[kind].items()]
    return [(op, bool(x)) for op, x in rows if x is not None or test in OURS]


def _summary(results: dict[str, Any]) -> Iterator[str]:
    yield "| test | faults seen | right functions refused | what it is |"
    yield "| --- | ---: | ---: | --- |"
    for name, source in {**OURS, **{test.name: test.source for test in TESTS}}.items():
        faults, right = (_verdicts(results, kind, name) for kind in ("faults", "right"))
        seen = sum(x and not _alarm(results, op, name) for op, x in faults)
        alarms = "" if name == "quick" else f"{sum(x for _, x in right)} of {len(right)}"
        told = source.replace("|", "\\|")
        yield f"| {name} | {seen} of {len(faults)} | {alarms} | {told} |"
    found = results["provenance"]
    yield ""
    parts = [", ".join(f"{name} {value}" for name, value in found.items() if name != "sources")]
    for op, later in results.get("later", {}).items():
        other = {name: value for name, value in later.items() if name != "sources" and found.get(name) != value}
        parts.append(f"{op} on its own, with {', '.join(f'{name} {value}' for name, value in other.items())}")
    yield f"Judged with {'; '.join(parts)}."


def _rights(results: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield f"The {len(results['right'])} right functions, {SEEDS} seeds each: {', '.join(results['right'])}."


def _faults(results: dict[str, Any]) -> Iterator[str]:
    for op in sorted({fault.op for fault in FAULTS.values()}, key=[*OPERATIONS, *EXAMPLES].index):
        chosen = {name: x for name, x in results["faults"].items() if name in FAULTS and FAULTS[name].op == op}
        tests = [*OURS, *(test.name for test in TESTS if test.covers(op))]
        alarms = {test for test in tests if _alarm(results, op, test)}
        yield f"\n### {op}\n"
        yield f"| fault | {' | '.join(tests)} |"
        yield f"| --- |{' :-: |' * len(tests)}"
        for name, x in chosen.items():
            seen = {test: x[test] if test in OURS else x["field"][test] for test in tests}
            cells = ("alarm" if test in alarms else "seen" if seen[test] else "·" for test in tests)
            yield f"| {name.removeprefix(f'{op}: ')} | {' | '.join(cells)} |"


def readme(results: dict[str, Any]) -> str:
    """The whole README, with its generated part anew."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(MARKERS[0])
    return before + MARKERS[0] + render(results) + MARKERS[1] + rest.split(MARKERS[1])[1]


def main(arguments: list[str] | None = None) -> None:
    """Run, keep the results, write the README."""
    parser = argparse.ArgumentParser(prog="python -m judging.table", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="how many rows at a time (default 2)")
    parser.add_argument("--operation", choices=[*OPERATIONS, *EXAMPLES], help="only the rows of this operation")
    parser.add_argument("--render", action="store_true", help="only write the README, from the committed results")
    options = parser.parse_args(arguments)
    if not options.render:
        # So that the pool's processes end, too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; finished rows are kept"))
        results = run(options.processes, options.operation)
        if options.operation:
            results = renewed(json.loads(RESULTS.read_text(encoding="utf-8")), options.operation, results)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    README.write_text(readme(results), encoding="utf-8")
    missed = [name for name, x in results["faults"].items() if not x["check"]]
    refused = {name: x["check"] for name, x in results["right"].items() if x["check"]}
    print("\n".join([*(f"missed: {name}" for name in missed), *(f"refused: {n}: {r}" for n, r in refused.items())]))
    sys.exit(bool(missed or refused))


if __name__ == "__main__":
    main()
