"""Files are written completely or not at all, whoever stops, races or kills the writer.

Seen red: files written in place; targets not checked first; `os.replace` where nothing may be overwritten; the file
named while it is written; a hidden file or a new directory left behind.
"""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.tokenizer import new_files
from ernie_m.tokenizer.new_files import directory, replacing

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ("a", "b", "c")


@pytest.fixture(params=["nameless", "hidden", "no links"])
def kind(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The files that different systems offer: without a name; with one; and without hard links, as on a USB stick."""
    if request.param == "nameless" and not hasattr(os, "O_TMPFILE"):
        pytest.skip("this system has no O_TMPFILE")
    if request.param == "hidden":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    if request.param == "no links":
        monkeypatch.setattr(os, "link", refuse)
    return str(request.param)


def refuse(*arguments: Any, **options: Any) -> None:
    raise PermissionError("operation not permitted")


def content(folder: Path) -> dict[str, bytes | None]:
    """Every name in a folder, and what is in the file; None for what is no regular file."""
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


def write(folder: Path, **options: Any) -> None:
    with replacing(*(folder / name for name in NAMES), **options) as opened:
        for name, file in zip(NAMES, opened, strict=True):
            file.write(b"new " + name.encode())


NEW: dict[str, bytes | None] = {name: b"new " + name.encode() for name in NAMES}


def test_files_are_replaced_and_removed(kind: str, tmp_path: Path) -> None:
    for name in ("a", "b", "gone", "stays"):
        (tmp_path / name).write_bytes(b"old")
    write(tmp_path, removed=iter([tmp_path / "gone", tmp_path / "never there"]))
    assert content(tmp_path) == {**NEW, "stays": b"old"}
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.name in NAMES} == {0o666 & ~umask}


def test_new_files_may_be_read_and_rewritten_from_the_start(kind: str, tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as (file,):
        file.write(b"12345")
        file.seek(1)
        file.write(b"x")
    assert content(tmp_path) == {"a": b"1x345"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_everything_as_it_was(kind: str, error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"old")
    with pytest.raises(error), replacing(*(tmp_path / name for name in NAMES)) as opened:
        opened[0].write(b"half of it")
        raise error
    assert content(tmp_path) == {"b": b"old"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_an_error_between_two_names_leaves_everything_as_it_was(
    place: int, when: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a file of another user in a shared folder, or Ctrl-C. The last is one to remove.

    Seen red with names exchanged one by one: a new config.json beside old weights.
    """
    for name in ("a", "gone"):
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "c").symlink_to("nowhere")
    before = {path.name: path.readlink() if path.is_symlink() else path.read_bytes() for path in tmp_path.iterdir()}
    stop = tmp_path / [*NAMES, "gone"][place]
    replace, unlink = os.replace, Path.unlink

    def failing(change: Any, *names: Any, **options: Any) -> None:
        if Path(names[-1]) != stop or stop in failed:
            return change(*names, **options)
        failed.append(stop)
        if when == "after":
            change(*names, **options)
        raise error

    failed: list[Path] = []
    monkeypatch.setattr(os, "replace", lambda *names: failing(replace, *names))
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: failing(unlink, path, missing_ok=missing_ok))
    with pytest.raises(error):
        write(tmp_path, removed=[tmp_path / "gone"])
    found = {path.name: path.readlink() if path.is_symlink() else path.read_bytes() for path in tmp_path.iterdir()}
    assert found == before and failed == [stop]


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_target_that_cannot_be_replaced_changes_nothing(kind: str, when: str, place: int, tmp_path: Path) -> None:
    """Whichever it is; the last is one to remove."""
    names = [*NAMES, "gone"]
    for name in names[:place] + names[place + 1 :]:
        (tmp_path / name).write_bytes(b"old")
    before = content(tmp_path)
    if when == "before":
        (tmp_path / names[place]).mkdir()
    with (
        pytest.raises(FileExistsError, match=f"{names[place]}: exists and is not a regular file"),
        replacing(*(tmp_path / name for name in NAMES), removed=[tmp_path / "gone"]),
    ):
        assert when == "meanwhile"
        (tmp_path / names[place]).mkdir()
    assert content(tmp_path) == {**before, names[place]: None}


def test_a_link_is_replaced_wherever_it_leads(kind: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name, target in zip(NAMES, ("folder", "nowhere", "stays"), strict=True):
        (tmp_path / name).symlink_to(tmp_path / target)
    (tmp_path / "stays").write_bytes(b"old")
    write(tmp_path)
    assert content(tmp_path) == {**NEW, "folder": None, "stays": b"old"}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("when", ["before", "meanwhile", "at the last moment"])
def test_without_overwriting_all_names_must_be_free(
    kind: str, when: str, place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / NAMES[place]
    if when == "before":
        other.write_bytes(b"other")
    if when == "at the last moment":
        monkeypatch.setattr(new_files, "refuse_targets", lambda *arguments: None)
    with (
        pytest.raises(FileExistsError, match=f"{NAMES[place]}: the file already exists"),
        replacing(*(tmp_path / name for name in NAMES), overwrite=False),
    ):
        other.write_bytes(b"other")
    assert content(tmp_path) == {NAMES[place]: b"other"}
    other.unlink()
    write(tmp_path, overwrite=False)
    assert content(tmp_path) == NEW


def test_a_missing_folder_is_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "none" / "a"):
        pass
    assert caught.value.filename == str(tmp_path / "none" / "a")


WRITER = """
import os, sys, time
from pathlib import Path
from ernie_m.tokenizer.new_files import replacing
if sys.argv[2] == "hidden" and hasattr(os, "O_TMPFILE"):
    del os.O_TMPFILE
with replacing(Path(sys.argv[1])) as (file,):
    file.write(bytes(2**20))
    print("half of it", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has no O_TMPFILE")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_writer_that_is_killed_leaves_nothing(number: int, tmp_path: Path) -> None:
    """Nobody handles the signal, as in a program that calls `save_pretrained`."""
    for way, left in (("nameless", 0), ("hidden", 1)):
        process = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "a", way], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"half of it\n"
        process.send_signal(number)
        process.communicate()
        assert process.returncode == -number
        assert len(list(tmp_path.iterdir())) == left


RACE = """
import os, sys
from pathlib import Path
from ernie_m.tokenizer import ErnieMTokenizer, new_files
folder, way = Path(sys.argv[1]), sys.argv[2]
tokenizer = ErnieMTokenizer.from_pretrained(sys.argv[3])
if way == "hidden" and hasattr(os, "O_TMPFILE"):
    del os.O_TMPFILE
reading, writing = os.pipe()
children = []
for i in range(120):
    if (child := os.fork()) == 0:
        os.close(writing)
        os.read(reading, 1)  # all begin together, when the parent closes the pipe
        try:
            with new_files.directory(folder), new_files.replacing(folder / "one", overwrite=False) as (file,):
                file.write(b"%d" % i)
            alone = True
        except FileExistsError:
            alone = False
        try:
            tokenizer.save_pretrained(folder)
            os._exit(alone)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(9)
    children.append(child)
os.close(reading)
os.close(writing)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(codes.count(0), codes.count(1))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("way", ["nameless", "hidden"])
def test_of_many_writers_all_succeed_or_where_they_may_not_overwrite_one(way: str, tmp_path: Path) -> None:
    source = ROOT / "reference" / "demo"
    command = [sys.executable, "-c", RACE, str(tmp_path / "new"), way, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("119 1\n", "")
    found = content(tmp_path / "new")
    names = ("sentencepiece.bpe.model", "special_tokens_map.json", "tokenizer_config.json", "vocab.txt")
    assert sorted(found) == sorted(["one", *names])
    assert found["vocab.txt"] == (source / "vocab.txt").read_bytes()
    assert found["one"] in [b"%d" % i for i in range(120)]


@given(st.lists(st.sampled_from(["x", "y", ".."]), min_size=1, max_size=4), st.integers(0, 4))
def test_directory_removes_what_it_made(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], existing: int
) -> None:
    base = tmp_path_factory.mktemp("base")
    inner = base / "p" / "q" / "r" / "s"
    inner.mkdir(parents=True)
    target = inner.joinpath(*parts)
    inner.joinpath(*parts[:existing]).mkdir(parents=True, exist_ok=True)
    before = sorted(base.rglob("*"))
    with pytest.raises(KeyboardInterrupt), directory(target):
        assert target.is_dir()
        raise KeyboardInterrupt
    assert sorted(base.rglob("*")) == before
    with pytest.raises(KeyboardInterrupt), directory(target):
        (target / "somebody else's").touch()
        raise KeyboardInterrupt
    assert [path.name for path in base.rglob("somebody*")] == ["somebody else's"]
    with directory(target):
        (target / "mine").touch()
    assert (target / "mine").is_file()


def test_directory_that_stays_empty_is_removed(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for target in (tmp_path / "old", tmp_path / "old" / "x" / "y"):
        with directory(target):
            assert target.is_dir()
        assert [path.name for path in tmp_path.rglob("*")] == ["old"]


# The way itself, and a module that writes only into a temporary folder of its own.
# A log grows line by line, and shards are written in a folder that gets its name when all is there.
EXCEPTIONS = (
    "tokenizer/new_files.py",
    "kernels/machine_code/children.py",
    "kernels/training/logs.py",
    "reference/training/shards.py",
)
WRITES = ("write_text", "write_bytes", "tofile", "replace", "rename", "copy", "copyfile", "move")


def written(tree: ast.AST) -> Iterator[str]:
    """Every call that writes, copies or renames a file by name."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, name = called.rpartition(".")
        given = {ast.unparse(value) for value in (*node.args, *(item.value for item in node.keywords))}
        # A member of an archive is not a file.
        opens = name == "open" and owner != "archive" and given & set(map(repr, ("w", "wb", "x", "xb", "a", "ab")))
        moves = name in WRITES and (owner in ("os", "shutil") or name.startswith("write") or name == "tofile")
        if (opens or moves or called == "os.open") and "os.devnull" not in given:
            yield f"{node.lineno}: {called}"


def test_there_is_one_way_of_replacing_files() -> None:
    sources = [path for room in ("kernels", "reference", "tokenizer") for path in (ROOT / room).rglob("*.py")]
    sources.append(ROOT / "notebooks" / "build.py")
    found = {path.relative_to(ROOT).as_posix(): list(written(ast.parse(path.read_text("utf-8")))) for path in sources}
    assert all(found[file] for file in EXCEPTIONS)
    assert [f"{file}:{call}" for file, calls in found.items() for call in calls if file not in EXCEPTIONS] == []
