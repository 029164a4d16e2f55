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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import ENVIRONMENT, PROGRAM, interruptible, make_checkpoint, run_program

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


def started(*arguments: Any, program: list[str] = PROGRAM, **options: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    usual = {**pipes, "env": ENVIRONMENT, "preexec_fn": interruptible}
    return subprocess.Popen([*program, *map(str, arguments)], **{**usual, **options})


def wait_for(seen: Callable[[], bool]) -> None:
    for _ in range(600):
        if seen():
            return
        time.sleep(0.05)
    pytest.fail("not within 30 s")


def size_in(folder: Path, process: subprocess.Popen[bytes]) -> int:
    """The bytes in the files of a folder and in those without a name that the process has open there."""
    found = list(folder.iterdir())
    with suppress(OSError):
        opened = [*Path(f"/proc/{process.pid}/fd").iterdir()]
        found += [link for link in opened if os.readlink(link).startswith(f"{folder}/")]
    return sum(path.stat().st_size for path in found)


SIGNALS = {
    signal.SIGINT: (130, b"ernie-m: interrupted\n"),
    signal.SIGTERM: (143, b"ernie-m: ended by SIGTERM\n"),
    signal.SIGHUP: (129, b"ernie-m: ended by SIGHUP\n"),
}
# As on systems where a file that is being written has a name.
HIDDEN = """
import os, sys
if hasattr(os, "O_TMPFILE"):
    del os.O_TMPFILE
from ernie_m.reference.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="files without a name are seen in Linux's /proc")
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_encode_ended_by_a_signal_leaves_no_file(
    checkpoint: Path, tmp_path: Path, name: str, number: signal.Signals, hidden: bool
) -> None:
    script = tmp_path / "ernie-m"
    script.write_text(HIDDEN)
    program = [sys.executable, str(script)] if hidden else PROGRAM
    tmp_path = tmp_path / "out"
    tmp_path.mkdir()
    # An endless input: only the signal can stop it.
    feeder = subprocess.Popen(["yes", "a line of text"], stdout=subprocess.PIPE)
    arguments = ("encode", "--model", checkpoint, "--output", tmp_path / name, "--window", 64)
    process = started(*arguments, program=program, stdin=feeder.stdout)
    try:
        wait_for(lambda: size_in(tmp_path, process) > 8192)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        feeder.kill()
        feeder.wait()
    assert (process.returncode, err) == SIGNALS[number]
    assert not list(tmp_path.iterdir())


# The signal comes again while files are removed, as from `timeout`, which sends it to the process and to its group.
SLOW = """
import pathlib, time
from ernie_m.reference.checkpoint import writing
def write(file, tensors):
    print("half of it", flush=True)
    time.sleep(60)
def unlink(path, missing_ok=False):
    if len(sys.argv) > 4:
        os.kill(os.getpid(), int(sys.argv.pop()))
    path.exists() and os.unlink(path)
writing.write_safetensors, pathlib.Path.unlink = write, unlink
"""
SLOW = HIDDEN.replace("sys.exit(main(sys.argv[1:]))", SLOW + "sys.exit(main(sys.argv[1:4]))")


@pytest.mark.parametrize("number", SIGNALS)
def test_convert_ended_by_a_signal_leaves_no_directory(
    checkpoint: Path, tmp_path: Path, number: signal.Signals
) -> None:
    again = [] if number == signal.SIGINT else [int(number)]
    arguments = ("convert", checkpoint, tmp_path / "new" / "folder", *again)
    process = started(*arguments, program=[sys.executable, "-c", SLOW])
    assert process.stdout is not None and process.stdout.readline() == b"half of it\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == SIGNALS[number]
    assert not list(tmp_path.iterdir())


def test_ignored_signals_stay_ignored(checkpoint: Path) -> None:
    """As `nohup` asks for."""

    def ignoring() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = started("tokenize", "--model", checkpoint, preexec_fn=ignoring)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"one\n" * 256)
    process.stdin.flush()
    assert process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(b"two\n", timeout=30)
    assert process.returncode == 0 and b'"index": 256' in out


@pytest.mark.parametrize("module", ["numpy", "torch"])
def test_interrupt_while_modules_are_imported_is_quiet(module: str, tmp_path: Path) -> None:
    """A stand-in for the module says when it is imported, and swallows what is raised in it, as real ones may."""
    swallow = "try:\n    print('importing', flush=True)\n    time.sleep(60)\nexcept BaseException:\n    pass\n"
    (tmp_path / f"{module}.py").write_text(f"import time\n{swallow}")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**ENVIRONMENT, "PYTHONPATH": path}
    script = Path(sys.executable).parent / "ernie-m"
    programs = {"numpy": [PROGRAM, [str(script)]], "torch": [[sys.executable, "-m", "ernie_m.kernels"]]}
    for program in programs[module]:
        if not Path(program[0]).exists():
            continue
        process = started("--help", program=program, env=environment)
        assert process.stdout is not None and process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        name = b"ernie_m.kernels" if module == "torch" else b"ernie-m"
        assert (process.returncode, err) == (130, name + b": interrupted\n")
    # Somebody else's program is left alone.
    process = started("-c", "import ernie_m.reference", program=[sys.executable], env=environment)
    if module == "numpy":
        assert process.stdout is not None and process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert b"interrupted" not in err


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


@pytest.mark.parametrize("number", SIGNALS)
def test_encode_ends_while_it_waits_for_a_line(checkpoint: Path, number: signal.Signals) -> None:
    """Seen red: a fatal error of Python's, as a thread was waiting in `sys.stdin.buffer`; waiting for that thread."""
    process = started("encode", "--model", checkpoint, "--window", 1)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"one\nunfinished")
    process.stdin.flush()
    assert process.stdout.readline()
    process.send_signal(number)
    assert (process.wait(timeout=30), process.stderr and process.stderr.read()) == SIGNALS[number]


def test_encode_ends_when_nobody_reads_while_it_waits_for_a_line(checkpoint: Path) -> None:
    process = started("encode", "--model", checkpoint, "--window", 1)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"one\n")
    process.stdin.flush()
    assert process.stdout.readline()
    process.stdout.close()
    process.stdin.write(b"two\nunfinished")
    process.stdin.flush()
    assert (process.wait(timeout=30), process.stderr and process.stderr.read()) == (141, b"")


def test_encode_names_the_extra_that_is_missing() -> None:
    program = "import sys; sys.modules['torch'] = None; from ernie_m.reference.cli import main; sys.exit(main())"
    for more in ([], ["--threads", "2"]):
        process = started("encode", "text", "--backend", "torch", *more, program=[sys.executable, "-c", program])
        _, err = process.communicate(timeout=60)
        expected = b"ernie-m: error: ernie_m.kernels needs torch: pip install 'ernie-m[kernels]'\n"
        assert (process.returncode, err.splitlines(keepends=True)[-1]) == (2, expected)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("program", [PROGRAM, [sys.executable, "-m", "ernie_m.kernels"]], ids=["ernie-m", "kernels"])
@pytest.mark.parametrize("command", [*("encode", "tokenize", "trace", "demo", "inspect"), "--help", "--version"])
def test_full_disk_is_an_error(checkpoint: Path, command: str, program: list[str]) -> None:
    """Never success, nor 1, which says that a difference was found. Seen red for each stream and for --help."""
    if program != PROGRAM and command != "--help":
        return
    if command.startswith("--"):
        arguments = [command]
    else:
        arguments = [command, *(() if command == "inspect" else ("text", "--model")), str(checkpoint)]
    with open("/dev/full", "wb") as full:
        process = started(*arguments, program=program, stdout=full)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert err.split(b": ", 1)[1] == b"error: standard output: No space left on device\n"
        environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
        unbuffered = started(*arguments, program=program, stdout=full, env=environment)
        _, err = unbuffered.communicate(timeout=60)
        assert unbuffered.returncode == 2 and err.endswith(b"error: standard output: No space left on device\n")
        both = started(*arguments, program=program, stdout=full, stderr=full)
        assert both.wait(timeout=60) == 2
        wrong = started(*arguments, "--no-such-option", program=program, stderr=full)
        wrong.communicate(timeout=60)
        assert wrong.returncode == (0 if command.startswith("--") else 2)


@pytest.mark.parametrize("program", [PROGRAM, [sys.executable, "-m", "ernie_m.kernels"]], ids=["ernie-m", "kernels"])
@pytest.mark.parametrize("command", ["tokenize", "--help"])
def test_a_closed_output_is_an_error(checkpoint: Path, command: str, program: list[str]) -> None:
    """Of one line. Seen red: "not writable"."""
    if program != PROGRAM and command != "--help":
        return
    arguments = [command] if command == "--help" else [command, "text", "--model", str(checkpoint)]
    process = started("-c", '"$@" >&-', "sh", *program, *arguments, program=["sh"], stdout=None)
    _, err = process.communicate(timeout=60)
    said = b"error: standard output: expected a file, a pipe or a terminal, but it is closed\n"
    assert (process.returncode, err.split(b": ", 1)[1]) == (2, said)


def test_an_input_that_cannot_be_read_is_named(checkpoint: Path) -> None:
    """Open for writing only. Seen red: "Bad file descriptor", of what was not said."""
    with open(os.devnull, "wb") as written:
        process = started("tokenize", "--model", checkpoint, stdin=written)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (2, b"", b"ernie-m: error: stdin: Bad file descriptor\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_note_that_cannot_be_written_is_an_error() -> None:
    """Here that the demo checkpoint is used; without a note, standard error may be full."""
    with open("/dev/full", "wb") as full:
        for arguments, status in ((["encode", "text"], 2), (["demo"], 0)):
            process = started(*arguments, stderr=full)
            process.communicate(timeout=60)
            assert process.returncode == status


def test_encode_that_fills_the_disk_leaves_no_file(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a line of text\n" * 500)
    (tmp_path / "out").mkdir()
    done = run_program(
        *("encode", "--model", str(checkpoint), "--file", str(tmp_path / "texts.txt")),
        *("--output", str(tmp_path / "out" / "x.npy"), "--window", "50"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
    )
    assert done.returncode == 2
    assert done.stderr == f"ernie-m: error: {tmp_path / 'out' / 'x.npy'}: File too large\n".encode()
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
