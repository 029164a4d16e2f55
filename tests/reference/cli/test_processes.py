"""The command line as a process: signals, pipes, full disks, memory and encodings."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import ENVIRONMENT, PROGRAM, make_checkpoint, run_program

# Not getrusage: on Linux, its maximum includes the parent's memory at the time of the fork.
PEAK = """
import sys
from ernie_m.reference.cli import main
code = main(sys.argv[1:])
print(*(line for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def interruptible() -> None:
    """Restore Ctrl-C, which a process started in the background would ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([*PROGRAM, *map(str, arguments)], env=ENVIRONMENT, preexec_fn=interruptible, **pipes)


def wait_for_file(folder: Path, size: int) -> None:
    """Wait until a file in `folder` has that size."""
    for _ in range(600):
        if any(path.stat().st_size >= size for path in folder.iterdir()):
            return
        time.sleep(0.05)
    pytest.fail("no output within 30 s")


# The size shows that rows have been written; those of an .npz are in an unnamed file.
@pytest.mark.parametrize(("name", "size"), [("x.npy", 8192), ("x.npz", 0)])
def test_encode_interrupted_leaves_no_file(checkpoint: Path, tmp_path: Path, name: str, size: int) -> None:
    # An endless input: only the signal can stop it.
    feeder = subprocess.Popen(["yes", "a line of text"], stdout=subprocess.PIPE)
    arguments = ("encode", "--model", checkpoint, "--output", tmp_path / name, "--window", 64)
    process = started(*arguments, stdin=feeder.stdout)
    try:
        wait_for_file(tmp_path, size)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        feeder.kill()
        feeder.wait()
    assert process.returncode == 130
    assert err == b"ernie-m: interrupted\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["encode", "tokenize"])
def test_closed_pipe_ends_the_program_quietly(checkpoint: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "texts.txt").write_text("a line of text\n" * 5000)
    process = started(command, "--model", checkpoint, "--file", tmp_path / "texts.txt")
    assert process.stdout is not None and process.stderr is not None
    first = json.loads(process.stdout.readline())
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert first["index"] == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_encode_streams_vectors_before_its_input_ends(checkpoint: Path) -> None:
    process = started("encode", "--model", checkpoint, "--window", 2)
    assert process.stdin is not None and process.stdout is not None
    # If the program writes nothing yet, the test fails instead of waiting forever.
    timer = threading.Timer(30, process.kill)
    timer.start()
    process.stdin.write(b"one\ntwo\nthree\n")
    process.stdin.flush()
    lines = [process.stdout.readline() for _ in range(2)]
    timer.cancel()
    assert [json.loads(line)["index"] for line in lines] == [0, 1]
    out, err = process.communicate(timeout=30)
    assert json.loads(out)["index"] == 2
    assert (process.returncode, err) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["encode", "tokenize", "trace", "demo"])
def test_full_disk_is_an_error(checkpoint: Path, command: str) -> None:
    with open("/dev/full", "wb") as full:
        process = started(command, "--model", checkpoint, "text", stdout=full)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err == b"ernie-m: error: No space left on device\n"


def test_encode_that_fills_the_disk_leaves_no_file(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a line of text\n" * 500)
    (tmp_path / "out").mkdir()
    done = run_program(
        *("encode", "--model", str(checkpoint), "--file", str(tmp_path / "texts.txt")),
        *("--output", str(tmp_path / "out" / "x.npy"), "--window", "50"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
    )
    assert done.returncode == 2
    assert done.stderr == b"ernie-m: error: File too large\n"
    assert not list((tmp_path / "out").iterdir())


def peak_memory(checkpoint: Path, lines: list[str], folder: Path) -> int:
    """The peak memory, in bytes, of encoding a file with these lines. Also checks the output's shape."""
    source, output = folder / f"{len(lines)}.txt", folder / f"{len(lines)}.npy"
    source.write_text("\n".join(lines), encoding="utf-8")
    arguments = ["encode", "--model", checkpoint, "--file", source, "--output", output, "--window", "256"]
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, env=ENVIRONMENT, timeout=120, check=True)
    assert np.load(output, mmap_mode="r").shape == (len(lines), 16)
    return 1024 * int(done.stderr.split()[-2])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_encode_needs_no_more_memory_for_twenty_times_the_lines(checkpoint: Path, tmp_path: Path) -> None:
    lines = [f"{i}{' ' * 200}" for i in range(80_000)]
    few, many = peak_memory(checkpoint, lines[:4000], tmp_path), peak_memory(checkpoint, lines, tmp_path)
    # Vectors of 64 bytes make 4.9 MB more, and texts 19 MB; an allocator may well be a megabyte off.
    assert many - few < 2_500_000
    # Order: a line encoded separately has the same row.
    chosen = list(range(0, 80_000, 8111))
    (tmp_path / "chosen.txt").write_text("\n".join(lines[i] for i in chosen), encoding="utf-8")
    arguments = ["--model", checkpoint, "--file", tmp_path / "chosen.txt", "--output", tmp_path / "chosen.npy"]
    assert run_program("encode", *map(str, arguments)).returncode == 0
    rows = np.load(tmp_path / "80000.npy")[chosen]
    np.testing.assert_allclose(rows, np.load(tmp_path / "chosen.npy"), rtol=0, atol=2e-5 * np.abs(rows).max())
    assert len(np.unique(rows, axis=0)) == len(chosen)


def test_progress_is_shown_only_on_terminals(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a line of text\n" * 30)
    arguments = ["encode", "--model", checkpoint, "--file", tmp_path / "texts.txt", "--window", 10, "--output"]
    assert run_program(*map(str, [*arguments, tmp_path / "x.npy"])).stderr == b""
    terminal, other_end = os.openpty()
    process = started(*arguments, tmp_path / "y.npy", stderr=other_end)
    os.close(other_end)
    assert process.wait(timeout=30) == 0
    shown = os.read(terminal, 4096)
    os.close(terminal)
    assert shown.split(b"\r")[1:] == [b"10 texts encoded", b"20 texts encoded", b"30 texts encoded", b"\x1b[K"]


def test_output_is_utf8_wherever_it_goes(checkpoint: Path) -> None:
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    command = [*PROGRAM, "tokenize", "--model", str(checkpoint), "猫が"]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert done.returncode == 0 and done.stderr == b""
    assert json.loads(done.stdout.decode("utf-8"))["tokens"] == ["[CLS]", "猫", "が", "[SEP]"]


def test_closed_standard_output_is_an_error(checkpoint: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "tokenize", "--model", str(checkpoint), "text"],
        stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=60, preexec_fn=lambda: os.close(1),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(b"ernie-m: error: ") and b"Traceback" not in done.stderr
