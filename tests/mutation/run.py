"""Changes the rooms' own floors, or their wings, in small ways, and counts how many of the changes a test notices.

    python tests/mutation/run.py [reference kernels tokenizer] [--count 120] [--seed 0] [--jobs 2]
    python tests/mutation/run.py reference/objectives --count 40     # a wing, which is named by its folder
    python tests/mutation/run.py kernels --survivors     # those that survived, again, however long their tests take
    python tests/mutation/run.py --report                # the scores and the survivors so far; runs nothing

A floor is the modules directly in a room's folder (not its `__init__`, which only imports), and those of a wing are
the modules directly in the wing's. Mutants are drawn from them by size, and in a module evenly over the operators of
`mutants.py`. Each is made in a copy of the tree, and meets the tests that run its line (recorded once), quickest first,
then the other tests of the same files, for a minute; the first failure kills it, and so does taking far too long.
Hypothesis draws the same examples each time.

Copies, coverage and results are kept in build/mutation: a run that was interrupted goes on where it stopped, and
a mutant that was judged is not run again while its module is unchanged. Delete the folder to start afresh. Mutants
listed in `equivalent.py` count as equivalent. Runs on Linux and macOS (it forks).
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from mutation.equivalent import EQUIVALENT  # noqa: E402
from mutation.mutants import Mutant, apply, sites  # noqa: E402

WORK = ROOT / "build" / "mutation"
ROOMS = ("reference", "kernels", "tokenizer")
# The tests that judge a floor, and what to leave out: minutes for what other tests show in seconds. A wing that is not
# here is judged by the folder of tests that has its name.
TESTS = {
    "reference": ["tests/reference/**/test_*.py", "tests/oracles/test_*.py"],
    "kernels": [
        *(f"tests/kernels/{part}.py" for part in ("test_*", "runtime/test_*", "machine_code/test_*")),
        *(
            f"tests/ecosystem/test_{part}.py"
            for part in ("fused_path", "hooks", "modules", "recomputing", "state", "*_weights")
        ),
    ],
    "tokenizer": ["tests/tokenizer/test_*.py", "tests/oracles/test_tokenizer_*.py"],
    "reference/heads": [f"tests/reference/test_{part}.py" for part in ("heads", "words", "gradients", "trace")],
    "reference/objectives": [
        f"tests/reference/{name}.py" for name in ("test_objectives", "test_attention_groups", "training/test_mixture")
    ],
    "reference/training": [
        *(f"tests/reference/{part}.py" for part in ("training/test_*", "tasks/test_extraction", "tasks/test_heads")),
        "tests/kernels/training/test_finetuning.py",
    ],
    "reference/training/corpus": ["tests/reference/training/test_corpus_*.py"],
}
SLOW = {"test_processes.py", "test_kernels_transformers.py", "test_kernel_changes.py", "test_gates.py", "test_toy.py"}
# Seconds of tests, as recorded, that a mutant meets at most; `--survivors` has no such limit.
BUDGET = 60
# Loaded once, before the first fork.
HEAVY = ("numpy", "sentencepiece", "pytest", "hypothesis", "torch", "torch._dynamo", "triton", "transformers")
ENVIRONMENT = {"CI": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Case:
    """One mutant of a module such as "kernels/gelu.py", whose source is `source`."""

    module: str
    mutant: Mutant
    source: str

    @property
    def key(self) -> str:
        text = f"{self.module} {self.mutant} {hashlib.sha256(self.source.encode()).hexdigest()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def change(self) -> tuple[str, str]:
        """The lines before and after, each as one line."""
        pair = self.source.splitlines(), apply(self.source, self.mutant).splitlines()
        diff = list(difflib.unified_diff(*pair, n=0, lineterm=""))[3:]
        old, new = (" ".join(" ".join(line[1:] for line in diff if line[0] == sign).split()) for sign in "-+")
        return old, new

    def equivalent(self) -> str | None:
        return EQUIVALENT.get((self.module, *self.change()))


def judges_of(room: str) -> list[Path]:
    """The files of tests that judge a room or a wing."""
    entries = TESTS.get(room, [f"tests/{room}/**/test_*.py"])
    return [path for entry in entries for path in sorted(ROOT.glob(entry)) if path.name not in SLOW]


def kept_in(name: str, room: str) -> Path:
    """Where something is kept of a room or a wing, such as build/mutation/results-reference-heads."""
    return WORK / f"{name}-{room.replace('/', '-')}"


def draw(room: str, count: int, seed: int) -> list[Case]:
    """About `count` mutants: for each module, in proportion to its sites, first an operator, then one of its sites."""
    paths = [path for path in sorted((ROOT / room).glob("*.py")) if not path.name.startswith("__")]
    sources = {f"{room}/{path.name}": path.read_text("utf-8") for path in paths}
    found = {module: sites(source) for module, source in sources.items()}
    total = sum(map(len, found.values()))
    drawn = []
    for module, mutants in found.items():
        rng = random.Random(f"{seed} {module}")
        by_operator = defaultdict(list)
        for mutant in rng.sample(mutants, len(mutants)):
            by_operator[mutant.operator].append(mutant)
        for _ in range(min(len(mutants), max(1, round(count * len(mutants) / total)) if mutants else 0)):
            operator = rng.choice(sorted(by_operator))
            drawn.append(Case(module, by_operator[operator].pop(), sources[module]))
            if not by_operator[operator]:
                del by_operator[operator]
    return drawn


class Watch:
    """A pytest plugin: how long each test takes, which lines of the floor it runs, and which test fails."""

    def __init__(self, room: Path | None) -> None:
        self.room = str(room) if room else None
        self.lines: dict[str, set[tuple[str, int]]] = {}
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings

        # A failure is enough; the smallest one costs time.
        changes = {"phases": [Phase.explicit, Phase.generate], "report_multiple_bugs": False, "max_examples": 100}
        settings.register_profile("mutants", settings.get_profile("ci"), **changes)
        settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self.room is None:
            return
        seen = self.lines.setdefault(nodeid, set())
        names: dict[str, str | None] = {}

        def name_of(file: str) -> str | None:
            if file not in names:
                folder, name = os.path.split(os.path.realpath(file))
                names[file] = name if folder == self.room else None
            return names[file]

        def enter(frame: Any, event: str, argument: object) -> Callable[..., Any] | None:
            name = name_of(frame.f_code.co_filename)
            if name is None:
                return None

            def line(frame: Any, event: str, argument: object) -> Callable[..., Any]:
                seen.add((name, frame.f_lineno))
                return line

            return line(frame, event, argument)

        sys.settrace(enter)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self.room is not None:
            sys.settrace(None)


def pytest(copy: Path, arguments: list[str], output: Path, room: Path | None = None) -> int:
    """Run pytest in a forked process, in a copy of the tree; -> the process. It writes `output`.json when it ends."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(copy)
    os.environ.update(ENVIRONMENT, PYTHONPATH=str(copy))
    sys.path[:] = [str(copy), *(entry for entry in sys.path if str(ROOT) not in entry)]
    sys.argv = ["pytest"]
    # Neither the mutant nor what imports it may leave compiled code behind for the next one.
    if room is None:
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    log = os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1), os.dup2(log, 2)
    try:
        _run_pytest(copy, arguments, output, room)
    finally:
        os._exit(0)


def _run_pytest(copy: Path, arguments: list[str], output: Path, room: Path | None) -> None:
    import pytest

    watch = Watch(room)
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={copy}", "-c", str(copy / "pyproject.toml")]
    code = pytest.main([*options, *arguments], plugins=[watch])
    imported = [str(sys.modules[f"ernie_m.{room}"].__file__) for room in ROOMS if f"ernie_m.{room}" in sys.modules]
    if not all(file.startswith(str(copy)) for file in imported):
        raise RuntimeError(f"expected tests to import the copy in {copy}, got {imported}")
    lines = {test: sorted(found) for test, found in watch.lines.items()}
    found = {"code": int(code), "failed": watch.failed, "seconds": watch.seconds, "lines": lines}
    output.with_suffix(".json").write_text(json.dumps(found))


def stop(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


def copy_tree(name: str) -> Path:
    """A fresh copy of the tree, in which `ernie_m` is a folder of links to its rooms."""
    copy = WORK / name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "__pycache__", "*.egg-info"))
    (copy / "ernie_m").mkdir()
    for room in ROOMS:
        (copy / "ernie_m" / room).symlink_to(f"../{room}")
    return copy


def digests(paths: Iterable[Path]) -> dict[str, str]:
    return {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def coverage(room: str) -> dict[str, Any]:
    """Which lines each test runs, and how long it takes.

    A test file is measured again when it has changed, or a module that its tests ran. Tests that fail on the tree as it
    is are left out, aloud.
    """
    kept = kept_in("coverage", room).with_suffix(".json")
    found = json.loads(kept.read_text()) if kept.exists() else {"modules": {}, "files": {}, "tests": {}}
    modules = digests(sorted((ROOT / room).glob("*.py")))
    files = digests(judges_of(room))
    changed = {Path(name).name for name, text in modules.items() if found["modules"].get(name) != text}
    stale = {file for file, text in files.items() if found["files"].get(file) != text}
    stale |= {_file_of(test) for test, one in found["tests"].items() if changed & {name for name, _ in one["lines"]}}
    stale &= set(files)
    tests = {test: one for test, one in found["tests"].items() if _file_of(test) in set(files) - stale}
    if stale:
        print(f"{room}: recording what the tests run, {len(stale)} files", flush=True)
        output = kept_in("recorded", room)
        output.with_suffix(".json").unlink(missing_ok=True)
        copy = copy_tree(kept_in("coverage", room).name)
        os.waitpid(pytest(copy, sorted(stale), output, copy / room), 0)
        shutil.rmtree(copy)
        new = json.loads(output.with_suffix(".json").read_text())
        for test, lines in new["lines"].items():
            tests[test] = {"lines": lines, "seconds": new["seconds"][test], "failed": test in new["failed"]}
        kept.write_text(json.dumps({"modules": modules, "files": files, "tests": tests}))
    for test in [test for test, one in tests.items() if one["failed"]]:
        print(f"left out, it fails on the tree as it is: {test}")
        del tests[test]
    return tests


def _file_of(test: str) -> str:
    return test.partition("::")[0]


def tests_for(case: Case, found: dict[str, Any], patient: bool) -> list[str]:
    """The tests to run, those that run the mutant's lines first, and the quickest of these first."""
    name = Path(case.module).name
    data = case.source.encode()
    last = case.mutant.line + data[case.mutant.start : case.mutant.end].count(b"\n")
    mutated = set(range(case.mutant.line, last + 1))
    near, module = set(), set()
    for test, one in found.items():
        own = {line for file, line in one["lines"] if file == name}
        if own:
            module.add(test)
        if own & mutated:
            near.add(test)
    # What runs on import belongs to every test of the module; what no test was seen to run, to all tests of the room.
    first = near or module or set(found)
    files = {_file_of(test) for test in first}
    rest = {test for test in found if _file_of(test) in files and test not in first}
    order = [test for group in (first, rest) for test in sorted(group, key=lambda test: found[test]["seconds"])]
    spent = itertools.accumulate(found[test]["seconds"] for test in order)
    return [test for test, seconds in zip(order, spent, strict=True) if patient or seconds < BUDGET]


def judge(cases: list[Case], room: str, jobs: int, patient: bool, record: Callable[[dict[str, Any]], None]) -> None:
    """Run each mutant against its tests, `jobs` at a time."""
    found = coverage(room)
    copies = [copy_tree(f"copy-{i}") for i in range(jobs)]
    running: dict[int, tuple[Case, Path, float, float]] = {}
    waiting = list(cases)

    def start(case: Case, copy: Path) -> None:
        tests = tests_for(case, found, patient)
        limit = 60 + 5 * sum(found[test]["seconds"] for test in tests)
        (copy / case.module).write_text(apply(case.source, case.mutant), encoding="utf-8")
        output = copy / "result"
        output.with_suffix(".json").unlink(missing_ok=True)
        process = pytest(copy, ["-x", *tests], output)
        running[process] = (case, copy, time.monotonic(), limit)

    def finish(process: int, why: str | None) -> None:
        case, copy, began, _ = running.pop(process)
        stop(process)
        output = copy / "result.json"
        ended: dict[str, Any] = {"code": -1, "failed": []}
        result = json.loads(output.read_text()) if output.exists() else ended
        killer = why or (result["failed"] or ["the import" if result["code"] > 0 else "a crash"])[0]
        (copy / case.module).write_text(case.source, encoding="utf-8")
        old, new = case.change()
        entry = {"key": case.key, "module": case.module, "line": case.mutant.line, "operator": case.mutant.operator}
        survived = result["code"] == 0 and why is None
        seconds = round(time.monotonic() - began, 1)
        record({**entry, "killer": None if survived else killer, "seconds": seconds, "old": old, "new": new})
        copies.append(copy)

    try:
        while waiting or running:
            while waiting and copies:
                start(waiting.pop(0), copies.pop())
            time.sleep(0.05)
            for process, (_, _, began, limit) in list(running.items()):
                if os.waitpid(process, os.WNOHANG)[0]:
                    finish(process, None)
                elif time.monotonic() - began > limit:
                    stop(process)
                    os.waitpid(process, 0)
                    finish(process, "the clock")
    finally:
        for process in running:
            stop(process)


def results(room: str) -> dict[str, dict[str, Any]]:
    kept = kept_in("results", room).with_suffix(".jsonl")
    lines = kept.read_text().splitlines() if kept.exists() else []
    return {entry["key"]: entry for entry in map(json.loads, lines)}


def report(room: str, cases: list[Case]) -> Iterator[str]:
    """Survivors, one change each, then the score."""
    judged = results(room)
    mine = [(case, judged[case.key]) for case in cases if case.key in judged]
    killed = [entry for _, entry in mine if entry["killer"]]
    equivalent = [case for case, entry in mine if not entry["killer"] and case.equivalent()]
    for case, entry in mine:
        if not entry["killer"] and not case.equivalent():
            yield f"{case.module}:{entry['line']} ({entry['operator']})\n  - {entry['old']}\n  + {entry['new']}"
    share = 100 * (len(killed) + len(equivalent)) / max(1, len(mine))
    yield (
        f"{room}: {len(mine)} of {len(cases)} mutants judged: {len(killed)} killed, {len(equivalent)} equivalent, "
        f"{len(mine) - len(killed) - len(equivalent)} survived: {share:.1f} %"
    )


def run(room: str, cases: list[Case], jobs: int, survivors: bool) -> None:
    judged = results(room)
    if survivors:
        waiting = [case for case in cases if case.key in judged and not judged[case.key]["killer"]]
        waiting = [case for case in waiting if not case.equivalent()]
    else:
        waiting = [case for case in cases if case.key not in judged]

    def record(entry: dict[str, Any]) -> None:
        with kept_in("results", room).with_suffix(".jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        told = f"killed by {entry['killer']}" if entry["killer"] else "SURVIVED"
        print(f"{entry['module']}:{entry['line']} {entry['operator']}: {told} ({entry['seconds']} s)", flush=True)

    if waiting:
        judge(waiting, room, jobs, survivors, record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", default=list(ROOMS), metavar="room", help="or a wing; default: all rooms")
    parser.add_argument("--count", type=int, default=120, help="mutants drawn in each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="how many run at a time")
    parser.add_argument("--survivors", action="store_true", help="run those that survived again, without a limit")
    parser.add_argument("--report", action="store_true", help="print the results so far")
    options = parser.parse_args()
    for room in options.rooms:
        if room.split("/")[0] not in ROOMS or not judges_of(room) or not list((ROOT / room).glob("*.py")):
            parser.error(f"expected a room or a wing that has tests, such as reference/training, got {room}")
    drawn = {room: draw(room, options.count, options.seed) for room in options.rooms}
    if not options.report:
        WORK.mkdir(parents=True, exist_ok=True)
        # So that nothing runs on after it.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
        os.environ.setdefault("TRITON_INTERPRET", "1")
        os.environ.update(ENVIRONMENT)
        for module in HEAVY:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        for room, cases in drawn.items():
            run(room, cases, options.jobs, options.survivors)
    for room, cases in drawn.items():
        print("\n".join(report(room, cases)))


if __name__ == "__main__":
    main()
