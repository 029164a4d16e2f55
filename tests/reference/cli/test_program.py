"""`ernie-m` itself: help, version, and how errors reach the user."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from cli_helpers import CORPUS, run_program

from ernie_m.reference.cli import demo as cli_demo
from ernie_m.reference.cli.command import describe
from ernie_m.reference.cli.program import COMMANDS, main

NAMES = [module.__name__.rpartition(".")[2] for module in COMMANDS]


def test_commands_are_those_documented() -> None:
    tasks = ["encode", "search", "align", "extract", "answer", "tag", "classify"]
    wanted = ["demo", *tasks, "tokenize", "trace", "inspect", "convert"]
    assert wanted == NAMES


@pytest.mark.parametrize("command", NAMES)
def test_help_of_each_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"usage: ernie-m {command}" in captured.out
    examples = captured.out.partition("examples:\n")[2]
    assert re.search(rf"^  (.*\| )?ernie-m {command}\b", examples, flags=re.M)
    # Each option has a help text.
    assert not re.search(r"^  --[a-z-]+( [A-Z]+)?$\n(?! {8})", captured.out, flags=re.M)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^    {command} +\w", out, flags=re.M) for command in NAMES)


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ernie-m {metadata.version('ernie-m')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["bogus"], "invalid choice: 'bogus'"),
        (["--bogus", "encode"], "unrecognized arguments: --bogus"),
        (["encode", "--bogus"], "unrecognized arguments: --bogus"),
        (["inspect", "DIR", "more"], "unrecognized arguments: more"),
        (["encode", "--pooling", "max", "a"], "argument --pooling: invalid choice: 'max'"),
        (["encode", "--pool", "cls", "a"], "unrecognized arguments"),
        (["inspect"], "the following arguments are required: DIR"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    command = f" {arguments[0]}" if arguments[:1] and arguments[0] in NAMES else ""
    assert re.fullmatch(rf"ernie-m: error: .* \(see ernie-m{command} --help\)\n", captured.err)
    assert message in captured.err


PATHS = {
    **{f"{name} --file": "file" for name in NAMES if name not in ("demo", "inspect", "convert")},
    **{f"{name} --model": "directory" for name in NAMES if name not in ("inspect", "convert")},
    "search --corpus": "file",
    "search --corpus-texts": "file",
    "trace --compare": "directory",
}


@pytest.mark.parametrize("option", PATHS)
def test_an_empty_name_is_refused_with_its_option(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As of an unset variable. Seen red: ": No such file or directory", "directory: expected a path"."""
    command, name = option.split()
    expected = {"file": "the name of a file", "directory": "a path, such as . for the current directory"}[PATHS[option]]
    assert main([command, name, ""]) == 2
    line = f"ernie-m: error: argument {name}: expected {expected}, got '' (see ernie-m {command} --help)\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(["inspect", ""], "DIR"), (["convert", "", "new"], "SRC"), (["convert", "old", ""], "DST")],
)
def test_an_empty_directory_is_refused(arguments: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert f"argument {name}: expected a path, such as . for the current directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("x: expected 1, got 2"), 2, "ernie-m: error: x: expected 1, got 2\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a/b"), 2, "ernie-m: error: a/b: No such file\n"),
        (OSError(errno.ENOSPC, "No space left"), 2, "ernie-m: error: No space left\n"),
        (FileNotFoundError("a: no checkpoint"), 2, "ernie-m: error: a: no checkpoint\n"),
        (ImportError("reading .bin needs torch"), 2, "ernie-m: error: reading .bin needs torch\n"),
        (MemoryError(), 2, "ernie-m: error: out of memory\n"),
        (KeyboardInterrupt(), 130, "ernie-m: interrupted\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
)
def test_main_turns_an_exception_into_a_line_and_an_exit_code(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(arguments: object) -> int:
        raise error

    monkeypatch.setattr(cli_demo, "run", fail)
    assert main(["demo"]) == status
    assert capsys.readouterr().err == line


def test_main_shows_where_a_bug_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2: Python's own, 1, would say that a comparison found a difference."""

    def fail(arguments: object) -> int:
        raise KeyError("a bug")

    monkeypatch.setattr(cli_demo, "run", fail)
    assert main(["demo"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback") and error.endswith("KeyError: 'a bug'\n")


def test_describe_is_never_empty() -> None:
    assert describe(ValueError()) == "ValueError"
    assert describe(MemoryError("cannot allocate 1 GiB")) == "out of memory: cannot allocate 1 GiB"


@pytest.mark.parametrize("command", NAMES)
def test_a_directory_that_is_not_a_checkpoint_is_an_error(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source").mkdir()
    more = {"answer": ["--question", "Who?"], "extract": ["--schema", "name"], "align": ["text"]}
    more["search"] = ["--corpus", str(CORPUS / "en.txt")]
    for source in (tmp_path / "source", tmp_path / "none"):
        positional = {"inspect": [str(source)], "convert": [str(source), str(tmp_path / "to")]}
        arguments = positional.get(command, ["--model", str(source), "text", *more.get(command, [])])
        assert main([command, *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith("ernie-m: error: ") and str(source) in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_program_runs_as_a_module_and_as_a_script(tmp_path: Path) -> None:
    assert run_program("--version", cwd=tmp_path).stdout == f"ernie-m {metadata.version('ernie-m')}\n".encode()
    script = Path(sys.executable).parent / "ernie-m"
    if script.exists():
        done = subprocess.run([script, "tokenize", "猫"], capture_output=True, cwd=tmp_path, timeout=60)
        assert done.returncode == 0 and b"Traceback" not in done.stderr
