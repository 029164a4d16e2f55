"""Checkpoints by name, from a server on the loopback that redirects, stops half-way, or sends other bytes.

huggingface_hub reads its settings when it is imported, so processes of their own load: one online, one offline, which
share a cache.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import ENVIRONMENT, make_checkpoint
from hub_server import CUT, LARGE, SHORT, TOKEN, WRONG, HubServer, Repository, commit_of, files_of
from hypothesis import example, given
from hypothesis import strategies as st

import ernie_m.reference as ernie
from ernie_m.reference.checkpoint.conversion import TOKENIZER_FILES
from ernie_m.reference.checkpoint.names import PADDLE, PREFIX, file_name, is_transposed
from ernie_m.reference.config import files as config_files
from ernie_m.reference.parameters import flatten
from ernie_m.reference.tasks.recorded import RETRIEVAL
from ernie_m.tokenizer import ErnieMTokenizer, hub

LOADING = """
import contextlib, io, json, sys
import ernie_m.reference as ernie
from ernie_m.reference.cli import main
from ernie_m.reference.tasks import Classifier, Encoder
from ernie_m.tokenizer import ErnieMTokenizer

def tokenizer(name, **options):
    found = ErnieMTokenizer.from_pretrained(name, **options)
    return [found(["The cat sleeps  well.", "x [SEP] y"])["input_ids"], found.lone_marker, found.model_max_length]
def config(name, **options):
    return ernie.ErnieMConfig.from_pretrained(name, **options).to_dict()
def model(name, **options):
    found = ernie.ErnieMModel.from_pretrained(name, **options)
    return found([[0, 5, 6, 2]]).last_hidden_state.tolist()
def encoder(name, **options):
    found = Encoder.from_pretrained(name, **options)
    return [found.layer, found.vectors(["The cat sleeps."]).tolist()]
def classifier(name, **options):
    return str(Classifier.from_pretrained(name, **options).classify(["The cat sleeps."]))
def command(*argv):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(argv))
    return [code, out.getvalue(), err.getvalue()]

for line in sys.stdin:
    call, arguments, options = json.loads(line)
    try:
        answer = ["done", globals()[call](*arguments, **options)]
    except Exception as error:
        answer = [type(error).__name__, str(error)]
    print(json.dumps(answer), flush=True)
"""


class Loader:
    """A process that loads checkpoints. `loader(call, ...)` returns the result; `loader.error(...)` the error."""

    def __init__(self, **settings: str) -> None:
        environment = {**ENVIRONMENT, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **settings}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([sys.executable, "-c", LOADING], env=environment, text=True, **pipes)

    def outcome(self, call: str, *arguments: str, **options: Any) -> list[Any]:
        """["done", result], or [class of the error, message]."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([call, [str(item) for item in arguments], options]) + "\n")
        self.process.stdin.flush()
        found: list[Any] = json.loads(self.process.stdout.readline())
        return found

    def __call__(self, call: str, *arguments: Any, **options: Any) -> Any:
        kind, result = self.outcome(call, *arguments, **options)
        assert kind == "done", (kind, result)
        return result

    def error(self, call: str, *arguments: Any, **options: Any) -> list[Any]:
        """The class of the error, and its message, which is one line."""
        kind, message = self.outcome(call, *arguments, **options)
        assert kind != "done" and "\n" not in message
        return [kind, message]

    def close(self) -> None:
        """End the process."""
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as found:
        yield found
        found.shutdown()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def online(server: HubServer, cache: Path) -> Iterator[Loader]:
    address = f"http://127.0.0.1:{server.server_port}"
    found = Loader(HF_ENDPOINT=address, HF_HOME=str(cache), HF_HUB_OFFLINE="0", HF_TOKEN=TOKEN)
    yield found
    found.close()


@pytest.fixture(scope="module")
def offline(cache: Path) -> Iterator[Loader]:
    # Nobody listens on port 9, so looking there would be another error.
    found = Loader(HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(cache), HF_HUB_OFFLINE="1")
    yield found
    found.close()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with every file that is read, in Hugging Face's format."""
    # A row for the added token, and the intermediate size that Paddle always has.
    sizes = {"vocab_size": 8001, "intermediate_size": 64}
    folder = make_checkpoint(tmp_path_factory.mktemp("local"), ernie.ErnieMForSequenceClassification, **sizes)
    tokenizer = ErnieMTokenizer.from_pretrained(folder, model_max_length=30, lone_marker="paddle")
    tokenizer.add_tokens(["sleeps"])
    tokenizer.save_pretrained(folder)
    (folder / RETRIEVAL).write_text('{"layer": 0, "language_means": {}}')
    return folder


@pytest.fixture(scope="module")
def sharded(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint, its weights in two files and an index."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("sharded")
    for name, data in files_of(local).items():
        (folder / name).write_bytes(data)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    place = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(weights)}
    for file in set(place.values()):
        save_file({name: weights[name] for name in weights if place[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    return folder


@pytest.fixture(scope="module")
def paddle(local: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in Paddle's format, whose weights decide how its other files are read."""
    folder = tmp_path_factory.mktemp("paddle")
    for name in ("vocab.txt", "sentencepiece.bpe.model"):
        (folder / name).write_bytes((local / name).read_bytes())
    model = ernie.ErnieMForSequenceClassification.from_pretrained(local)
    state = {
        file_name(path, PADDLE, PREFIX): np.ascontiguousarray(array.T if is_transposed(path, PADDLE) else array)
        for path, array in flatten(model.parameters).items()
    }
    (folder / "model_state.pdparams").write_bytes(pickle.dumps(state, 4))
    # Paddle does not read this size: its large model's file is wrong too.
    (folder / "config.json").write_text(json.dumps({**model.config.to_dict(), "intermediate_size": 7}))
    return folder


@pytest.fixture(scope="module")
def checkpoints(local: Path, sharded: Path, paddle: Path) -> dict[str, Path]:
    """The directories by format."""
    return {"local": local, "sharded": sharded, "paddle": paddle}


@pytest.fixture(scope="module")
def expected(checkpoints: dict[str, Path], offline: Loader) -> dict[str, dict[str, Any]]:
    """What each call gives for each directory."""
    return {format: {call: offline(call, folder) for call in CALLS} for format, folder in checkpoints.items()}


CALLS = ("tokenizer", "config", "model", "encoder", "classifier")
UNREAD = {"README.md": b"card", "pytorch_model.bin": b"old", "optimizer.bin": b"x", "rust_model.ot": b"x"}


@pytest.mark.parametrize("format", ["local", "sharded", "paddle"])
def test_a_repository_loads_as_its_directory_does_and_offline_from_the_cache(
    format: str,
    server: HubServer,
    online: Loader,
    offline: Loader,
    checkpoints: dict[str, Path],
    expected: dict[str, dict[str, Any]],
) -> None:
    """Bit for bit, through redirects. Only what is read is downloaded, and once; the token stays with the Hub."""
    name, files = f"someone/{format}", files_of(checkpoints[format])
    # Weights in another format would be read, and so downloaded, if that format came first.
    others = {file: data for file, data in UNREAD.items() if format != "paddle" or file != "pytorch_model.bin"}
    server.repositories[name] = Repository({"main": files | others})
    assert online("tokenizer", name) == expected[format]["tokenizer"]
    weights = [file for file in server.fetched(name) if "model_state" in file or "safetensors" in file]
    assert weights == (["model_state.pdparams"] if format == "paddle" else [])
    assert {call: online(call, name) for call in CALLS} == expected[format]
    assert sorted(server.fetched(name)) == sorted(files)
    stored = [token for _, path, token in server.seen if path.startswith("/stored/")]
    assert stored and set(stored) == {None}
    before = len(server.seen)
    assert {call: offline(call, name) for call in CALLS} == expected[format]
    assert len(server.seen) == before


def test_a_renamed_repository_is_found(local: Path, server: HubServer, online: Loader) -> None:
    server.repositories["new/name"] = Repository({"main": files_of(local)})
    server.renamed["old/name"] = "new/name"
    assert online("model", "old/name") == online("model", local)


def test_revision_chooses_a_branch_a_tag_or_a_commit(
    local: Path, server: HubServer, online: Loader, offline: Loader, tmp_path: Path
) -> None:
    other = make_checkpoint(tmp_path, ernie.ErnieMForSequenceClassification, seed=1)
    server.repositories["some/revisions"] = Repository({"main": files_of(local), "v1": files_of(other)})
    for loader in (online, offline):
        for call in CALLS:
            assert loader(call, "some/revisions") == loader(call, local)
            assert loader(call, "some/revisions", revision="v1") == loader(call, other)
        assert loader("model", "some/revisions", revision=commit_of("v1")) == loader("model", other)
    kind, message = online.error("model", "some/revisions", revision="v2")
    assert kind == "FileNotFoundError" and message == "some/revisions: the repository has no revision 'v2'"
    kind, message = offline.error("model", "some/revisions", revision="v2")
    assert kind == "FileNotFoundError" and "v2 of the repository of that name is not in the cache" in message
    for call in CALLS:
        kind, message = online.error(call, local, revision="main")
        assert kind == "ValueError" and str(local) in message and "has no revisions, got 'main'" in message


VITAL = ("config.json", "vocab.txt", "sentencepiece.bpe.model")
FAULTS = {
    ("local", CUT): (*VITAL, "tokenizer_config.json", RETRIEVAL, "model.safetensors"),
    ("sharded", CUT): ("model.safetensors.index.json", "model-00002-of-00002.safetensors"),
    ("paddle", CUT): (*VITAL, "model_state.pdparams"),
    ("local", WRONG): ("config.json", "tokenizer_config.json", "model.safetensors"),
    ("sharded", WRONG): ("model-00002-of-00002.safetensors",),
    ("paddle", WRONG): ("model_state.pdparams",),
    ("local", SHORT): ("vocab.txt",),
}


@pytest.mark.parametrize(
    ("format", "file", "fault"), [(format, file, fault) for (format, fault), files in FAULTS.items() for file in files]
)
def test_a_failed_download_is_one_error_and_never_loads_as_complete(
    format: str,
    file: str,
    fault: str,
    server: HubServer,
    online: Loader,
    offline: Loader,
    checkpoints: dict[str, Path],
    expected: dict[str, dict[str, Any]],
) -> None:
    """Offline, what has arrived loads either as the directory does, or not at all; when all is well again, it loads."""
    name = f"failing/{format}-{re.sub('[^a-z0-9]+', '-', file)}-{fault}"
    server.repositories[name] = Repository({"main": files_of(checkpoints[format])}, faults={file: fault})
    for _ in range(2):
        kind, message = online.error("encoder", name)
        assert kind == "OSError" and message.startswith(f"{name}: ") and message.endswith("what is in the cache")
        if fault == WRONG:
            assert f"{file}: expected the {'SHA-256' if file.endswith(LARGE) else 'git hash'} " in message
    for call in CALLS:
        kind, found = offline.outcome(call, name)
        assert found == expected[format][call] if kind == "done" else kind == "FileNotFoundError", found
    assert kind != "done"
    server.repositories[name].faults.clear()
    assert online("encoder", name) == expected[format]["encoder"]


def test_errors_say_what_to_do(local: Path, server: HubServer, online: Loader, offline: Loader) -> None:
    server.repositories["some/private"] = Repository({"main": files_of(local)}, "private")
    server.repositories["some/gated"] = Repository({"main": files_of(local)}, "gated")
    assert online("model", "some/private") == online("model", local)
    kind, message = online.error("model", "some/gated")
    assert kind == "PermissionError" and "HF_TOKEN" in message
    assert message.startswith("some/gated: the repository is gated")
    for call in CALLS:
        kind, message = online.error(call, "no/such")
        assert kind == "FileNotFoundError" and message.startswith("no/such: no such directory, and no such public")
        assert "HF_TOKEN" in message
        kind, message = offline.error(call, "no/such")
        assert kind == "FileNotFoundError" and message.startswith("no/such: ") and "HF_HUB_OFFLINE is set" in message


def chained(outer: Exception, *inner: Exception) -> Exception:
    """An error of a library, and what led to it."""
    outer.__context__ = chained(*inner) if inner else None
    return outer


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (chained(OSError("pool"), RuntimeError("x"), ConnectionRefusedError(111, "Connection refused")),
         "cannot be reached: connection refused; {advice}"),
        (chained(OSError("pool"), socket.gaierror(-2, "Name or service not known")),
         "cannot be reached: name or service not known; {advice}"),
        (chained(OSError("pool"), TimeoutError("timed out")),
         "cannot be reached: timed out; {advice}"),
        (chained(OSError("pool"), ConnectionResetError(104, "Connection reset by peer")),
         "failed: connection reset by peer; {advice}"),
        (PermissionError(13, "Permission denied", "/cache/hub"), "in the cache: /cache/hub: permission denied"),
        (OSError(28, "No space left on device"), "CACHE: no space left on device"),
    ],
)  # fmt: skip
def test_errors_of_the_system_are_told_in_its_words(
    error: Exception, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the names of the libraries' classes; where it is no use to try again, that is not said."""
    from huggingface_hub import constants

    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(hub, "_snapshot", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "CACHE")
    end = end.format(advice="try again, or set HF_HUB_OFFLINE=1 to use what is in the cache")
    with pytest.raises(OSError, match=r"^owner/name: ") as caught:
        hub.directory("owner/name")
    assert str(caught.value).endswith(end) and "pool" not in str(caught.value)


def test_a_bug_is_no_failed_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(hub, "_snapshot", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(KeyError, match="bug"):
        hub.directory("owner/name")


def test_nobody_listens(tmp_path: Path) -> None:
    loader = Loader(HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0")
    kind, message = loader.error("config", "owner/name")
    loader.close()
    assert kind == "OSError" and "http://127.0.0.1:9, which" in message
    assert "cannot be reached: connection refused; try again" in message


def test_commands_take_a_repository_and_its_revision(
    local: Path, server: HubServer, online: Loader, tmp_path: Path
) -> None:
    other = make_checkpoint(tmp_path / "other", ernie.ErnieMForSequenceClassification, seed=1)
    server.repositories["for/commands"] = Repository({"main": files_of(local), "v1": files_of(other)})
    for argv in (["encode", "--model"], ["classify", "--format", "json", "--model"], ["trace", "--json", "--model"]):
        for name, directory in (("for/commands", local), ("for/commands@v1", other)):
            found = online("command", *argv, name, "The cat sleeps.")
            assert found == online("command", *argv, directory, "The cat sleeps.") and found[0] == 0
    traced = ["trace", "--model", str(other), "The cat sleeps."]
    assert online("command", *traced, "--compare", "for/commands@v1")[0] == 0
    assert online("command", *traced, "--compare", "for/commands")[0] == 1
    assert online("command", "inspect", "for/commands@v1")[0] == 0
    assert online("command", "convert", "for/commands@v1", tmp_path / "converted")[0] == 0
    assert online("model", tmp_path / "converted") == online("model", other)
    code, out, err = online("command", "encode", "--model", "for/commands@v2", "x")
    assert (code, out, err) == (2, "", "ernie-m: error: for/commands: the repository has no revision 'v2'\n")


def test_what_is_downloaded_is_what_is_read() -> None:
    read = {*TOKENIZER_FILES, config_files.CONFIG_FILE, config_files.PADDLE_CONFIG_FILE, RETRIEVAL}
    assert {*hub.OPTIONAL, *hub.REQUIRED} == read


NAMES = st.text("ab0-_./@~ é\n", max_size=6) | st.from_regex(r"[aé.-]{1,4}/[aé.-]{1,4}(\.git)?", fullmatch=True)


@given(NAMES)
@example("a..b/c")
@example("a/b--c")
@example("a/b.git")
@example("é/a")
@example("a/b\n")
@example("a/b/c")
def test_is_repository_takes_names_of_two_parts_that_the_hub_allows(name: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        valid = name.count("/") == 1 and re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) is not None
    except HFValidationError:
        valid = False
    # The Hub's own rule is looser about the first part.
    assert not hub.is_repository(name) or valid
    if valid and re.fullmatch(r"\w+/\w+", name, re.ASCII):
        assert hub.is_repository(name)


def test_a_name_that_could_be_a_path_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_snapshot", lambda *arguments: pytest.fail("looked up"))
    (tmp_path / "owner").mkdir()
    for name in (Path("other/name"), "owner/name", "/other/name", "./name", "../name", "~/name", "a/b/c", "name"):
        assert hub.directory(name) is name
        assert not hub.is_repository(name)
        with pytest.raises(FileNotFoundError):
            ernie.ErnieMModel.from_pretrained(name)
    with pytest.raises(ValueError, match=r"^directory: expected a path, .*, got ''"):
        hub.directory("")
    assert hub.is_repository("other/name")
    (tmp_path / "owner" / "name").symlink_to("nowhere")
    with pytest.raises(ValueError, match="revision: expected none for owner/name, as a local path has no revisions"):
        hub.directory("owner/name", "main")


def test_without_the_extra_one_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for load in (ErnieMTokenizer, ernie.ErnieMConfig, ernie.ErnieMModel):
        with pytest.raises(ImportError) as caught:
            load.from_pretrained("some/name")
        assert str(caught.value) == (
            "some/name: no such directory; loading a repository of that name from the Hugging Face Hub needs "
            "huggingface_hub: pip install 'ernie-m[hub]'"
        )


def test_a_directory_is_loaded_without_sockets_or_huggingface_hub(local: Path) -> None:
    """Also a name that could be a mistyped path."""
    program = f"""
import os, socket, sys
def refuse(*arguments, **options): raise AssertionError("a socket was opened")
socket.socket.__init__ = socket.getaddrinfo = refuse
{LOADING.partition("for line")[0]}
for call in (tokenizer, config, model, encoder, classifier):
    call({str(local)!r})
os.mkdir("owner")
for call in (tokenizer, config, model, encoder, classifier):
    try:
        call("owner/name")
        raise AssertionError("loaded")
    except FileNotFoundError:
        pass
assert command("encode", "--model", {str(local)!r}, "x")[0] == 0
assert not [name for name in sys.modules if name.partition(".")[0] in ("huggingface_hub", "requests", "httpx")]
"""
    folder = local.parent / "empty"
    folder.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
