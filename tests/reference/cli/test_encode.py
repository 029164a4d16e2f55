"""`ernie-m encode`: the vectors and their order, however texts are read, sorted and batched."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import LONGEST, corpus, make_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ernie_m.reference import ErnieMForTokenClassification, ErnieMModel
from ernie_m.reference.cli import encode as cli_encode
from ernie_m.reference.cli.program import main
from ernie_m.reference.tasks.long_texts import parts, window_starts
from ernie_m.tokenizer import ErnieMTokenizer

LONG = " ".join(corpus("de")[:6])
SENTENCES = corpus("en", "ja", "ar", "th")[::9]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> ErnieMModel:
    found: ErnieMModel = ErnieMModel.from_pretrained(checkpoint, dtype=np.float32)
    return found


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> ErnieMTokenizer:
    return ErnieMTokenizer.from_pretrained(checkpoint)


def alone(model: ErnieMModel, ids: Sequence[int], pooling: str) -> np.ndarray:  # (S,) -> (E,)
    """The vector of one row of ids, run as a batch of one."""
    out = model(np.array([ids]))
    assert out.pooler_output is not None
    if pooling == "pooler":
        return out.pooler_output[0]
    return out.last_hidden_state[0, 0] if pooling == "cls" else out.last_hidden_state[0].mean(axis=0)


def assert_close(found: np.ndarray, expected: Sequence[np.ndarray]) -> None:
    """Equal up to float32 rounding in this one-layer model."""
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.array(expected), rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_encode_returns_for_each_line_the_vector_that_it_has_alone(
    checkpoint: Path, model: ErnieMModel, tokenizer: ErnieMTokenizer, tmp_path: Path, pooling: str
) -> None:
    lines = [*SENTENCES, "", "a", "", LONG]
    np.random.default_rng(0).shuffle(lines)
    (tmp_path / "texts.txt").write_bytes("\n".join(lines).encode("utf-8"))
    output = tmp_path / "x.npy"
    arguments = ["--model", checkpoint, "--pooling", pooling, "--file", tmp_path / "texts.txt", "--output", output]
    assert main(["encode", *map(str, arguments), "--window", "7", "--batch-size", "3"]) == 0
    ids = tokenizer(lines, truncation=True, max_length=LONGEST)["input_ids"]
    assert_close(np.load(output), [alone(model, row, pooling) for row in ids])


def test_encode_writes_the_same_vectors_in_every_form(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["encode", "--model", str(checkpoint), "one", "two words", "", "drei Wörter hier"]
    assert main([*arguments, "--output", str(tmp_path / "x.npy")]) == 0
    assert main([*arguments, "--output", str(tmp_path / "x.npz")]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    vectors = np.load(tmp_path / "x.npy")
    assert vectors.shape == (4, 16)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["vectors"], vectors)
    np.testing.assert_array_equal(np.array([line["vector"] for line in lines], np.float32), vectors)
    assert [line["index"] for line in lines] == [0, 1, 2, 3]


def test_encode_of_no_lines_writes_an_array_without_rows(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "none.txt").touch()
    for name in ("x.npy", "x.npz"):
        arguments = ["--model", checkpoint, "--file", tmp_path / "none.txt", "--output", tmp_path / name]
        assert main(["encode", *map(str, arguments)]) == 0
    assert np.load(tmp_path / "x.npy").shape == np.load(tmp_path / "x.npz")["vectors"].shape == (0, 16)


def test_encode_reports_how_many_texts_it_truncates(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["encode", "--model", str(checkpoint)]
    assert main([*arguments, "short", LONG, LONG, "short"]) == 0
    assert capsys.readouterr().err == "ernie-m: truncated 2 of 4 texts to the model's 34 tokens\n"
    assert main([*arguments, "short"]) == main([*arguments, "--long", "window-mean", LONG]) == 0
    assert capsys.readouterr().err == ""


def test_encode_long_error_names_the_line_and_its_length(
    checkpoint: Path, tokenizer: ErnieMTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n = len(tokenizer(LONG)["input_ids"])
    (tmp_path / "texts.txt").write_text(f"fits\n\n{LONG}\n", encoding="utf-8")
    arguments = ["--model", checkpoint, "--file", tmp_path / "texts.txt", "--output", tmp_path / "x.npy"]
    assert main(["encode", *map(str, arguments), "--long", "error"]) == 2
    expected = f"line 3 of texts.txt: expected at most 34 tokens, [CLS] and [SEP] included, got {n}"
    assert capsys.readouterr().err == f"ernie-m: error: {expected}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.txt"]


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_encode_window_mean_is_the_mean_of_windows_run_alone(
    checkpoint: Path, model: ErnieMModel, tokenizer: ErnieMTokenizer, tmp_path: Path, pooling: str
) -> None:
    arguments = ["encode", "--model", str(checkpoint), "--long", "window-mean", "--pooling", pooling]
    arguments += ["--output", str(tmp_path / "x.npy"), "--batch-size", "2"]
    assert main([*arguments, "short", LONG, "also short"]) == 0
    rows = tokenizer(["short", LONG, "also short"])["input_ids"]
    n = len(rows[1]) - 2
    # Equal steps of at most 24 of the 32 tokens.
    count = 1 + int(np.ceil((n - 32) / 24))
    starts = [int(i * (n - 32) / (count - 1)) for i in range(count)]
    assert count > 3
    windows = [[0, *rows[1][1 + start : 33 + start], 2] for start in starts]
    means = [alone(model, window, pooling) for window in windows]
    expected = [alone(model, rows[0], pooling), np.mean(means, axis=0), alone(model, rows[2], pooling)]
    assert_close(np.load(tmp_path / "x.npy"), expected)


@given(st.integers(1, 600), st.integers(1, 5000))
def test_window_starts_cover_the_text_and_overlap(longest: int, more: int) -> None:
    n = longest + more
    starts = window_starts(n, longest)
    steps = np.diff(starts)
    assert starts[0] == 0 and starts[-1] == n - longest
    assert (steps >= 1).all() and steps.max() - steps.min() <= 1
    # Neighbours share a quarter of a window, if a window is long enough to be shared.
    furthest = max(1, longest - int(np.ceil(longest / 4)))
    assert steps.max() <= furthest
    assert len(starts) == 2 or (n - longest) / (len(starts) - 2) > furthest, "one window less would have been enough"


def test_parts_of_a_text_that_fits_is_the_text() -> None:
    for policy in ("error", "truncate", "window-mean"):
        assert parts([1, 2, 3], 3, policy) == [[1, 2, 3]]
        assert parts([], 3, policy) == [[]]
    assert parts([1, 2, 3, 4], 3, "truncate") == [[1, 2, 3]]


def test_encode_rejects_an_output_before_any_work(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_encode.Encoder, "from_pretrained", lambda *arguments: pytest.fail("loaded a model first"))
    (tmp_path / "old.npy").write_bytes(b"old")
    for output, message in {
        "old.npy": "already exists",
        "none/x.npy": "is not a directory",
        "x.csv": "ends in .npy",
    }.items():
        arguments = ["encode", "text", "--model", str(checkpoint), "--output", str(tmp_path / output)]
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith("ernie-m: error: ") and message in captured.err
    assert main(["encode", "--file", str(tmp_path / "none"), "--output", str(tmp_path / "x.npy")]) == 2
    assert (tmp_path / "old.npy").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_encode_of_a_file_that_is_not_utf8_leaves_no_output(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_bytes(b"fine\n" * 20 + b"\xff\n")
    arguments = ["--model", checkpoint, "--file", tmp_path / "texts.txt", "--output", tmp_path / "x.npy"]
    assert main(["encode", *map(str, arguments), "--window", "4"]) == 2
    assert "line 21 of texts.txt: expected UTF-8, got byte 0xff" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_encode_refuses_to_initialise_a_missing_pooler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = make_checkpoint(tmp_path, ErnieMForTokenClassification)
    assert main(["encode", "--model", str(directory), "--pooling", "pooler", "text"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    expected = f"pooling: {directory} has no pooler; expected cls, mean or first-last, got pooler"
    assert captured.err == f"ernie-m: error: {expected}\n"
    assert main(["encode", "--model", str(directory), "--pooling", "cls", "text"]) == 0


@pytest.mark.parametrize("policy", ["truncate", "window-mean"])
def test_encode_needs_room_for_one_token(policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rows in (("small", 5), ("smaller", 4)):
        make_checkpoint(tmp_path / name, max_position_embeddings=rows)
    arguments = ["encode", "--long", policy, "two words", "--model"]
    assert main([*arguments, str(tmp_path / "small")]) == 0
    assert main([*arguments, str(tmp_path / "smaller")]) == 2
    assert (
        "model: expected a maximum length of at least 3 tokens ([CLS], a token, [SEP]), got 2"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("option", ["--batch-size", "--window", "--threads"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x", "²"])
def test_encode_rejects_an_invalid_size(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "text", f"{option}={value}"]) == 2
    message = f"argument {option}: expected a whole number of at least 1, got {value!r}"
    assert capsys.readouterr().err == f"ernie-m: error: {message} (see ernie-m encode --help)\n"


@pytest.mark.parametrize("digits", [5, 10, 19, 20, 30, 5000])
def test_encode_rejects_more_threads_than_machines_have(digits: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Seen red: "Overflow when unpacking long", a traceback, and libgomp, which ended the process."""
    value = "9" * digits
    for backend in ("numpy", "torch"):
        assert main(["encode", "text", "--backend", backend, "--threads", value]) == 2
        message = f"argument --threads: expected a whole number from 1 to 4096, got {value!r:.80}"
        assert capsys.readouterr().err == f"ernie-m: error: {message} (see ernie-m encode --help)\n"


@pytest.mark.parametrize("option", ["--window", "--batch-size", "--layer"])
def test_encode_reads_numbers_of_64_bits(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("9223372036854775808", "1" * 5000):
        assert main(["encode", "text", option, value]) == 2
        assert f"argument {option}: expected a whole number from " in capsys.readouterr().err
    assert main(["encode", "text", option, "0" * 5000 + "3"]) == 0
    if option != "--layer":
        assert main(["encode", "text", option, "9223372036854775807"]) == 0


def test_encode_with_torch_writes_the_same_vectors(checkpoint: Path, tmp_path: Path) -> None:
    """With one head of size 8, for which there is no kernel."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    arguments = ["encode", "--model", str(checkpoint), "--window", "3", "--long", "window-mean"]
    texts = ["--", *SENTENCES[:2], "", LONG, "short"]
    assert main([*arguments, "--output", str(tmp_path / "numpy.npy"), *texts]) == 0
    torch_options = ["--backend", "torch", "--device", "cpu", "--threads", str(before + 1)]
    assert main([*arguments, *torch_options, "--output", str(tmp_path / "torch.npy"), *texts]) == 0
    assert_close(np.load(tmp_path / "torch.npy"), list(np.load(tmp_path / "numpy.npy")))
    assert torch.get_num_threads() == before


def test_encode_rejects_a_device_without_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "text", "--device", "cuda", "--output", str(tmp_path / "x.npy")]) == 2
    assert (
        "error: device: expected none, as the NumPy backend computes on the CPU, got 'cuda'" in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_encode_notes_what_the_checkpoint_in_the_package_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "text"]) == 0
    captured = capsys.readouterr()
    assert "small checkpoint in the package, which only knows help pages of software" in captured.err
    assert len(json.loads(captured.out)["vector"]) == 96


@pytest.mark.parametrize("parts_of", [1, 2, 3, 30])
def test_encode_of_parts_joins_to_what_one_run_writes(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], parts_of: int
) -> None:
    """Bit for bit, in both forms, also if there are fewer windows than parts. Seen red: parts that cut windows; indices
    that begin at 0."""
    file = tmp_path / "texts.txt"
    file.write_text("\n".join([*SENTENCES, "", LONG, *SENTENCES[:3]]), "utf-8")
    command = ["encode", "--model", str(checkpoint), "--file", str(file), "--window", "5"]

    def run(*more: str) -> str:
        assert main([*command, *more]) == 0
        return capsys.readouterr().out

    assert run() == "".join(run("--shard", f"{i}/{parts_of}") for i in range(1, parts_of + 1))
    run("--output", str(tmp_path / "all.npy"))
    for i in range(1, parts_of + 1):
        run("--output", str(tmp_path / f"{i}.npy"), "--shard", f"{i}/{parts_of}")
    joined = np.concatenate([np.load(tmp_path / f"{i}.npy") for i in range(1, parts_of + 1)])
    assert joined.tobytes() == np.load(tmp_path / "all.npy").tobytes()


@pytest.mark.parametrize("given", ["0/3", "4/3", "1", "1/0", "a/b", "1/2/3"])
def test_encode_rejects_a_part_that_is_none(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "--shard", given, "x"]) == 2
    assert f"such as 3/16, got '{given}'" in capsys.readouterr().err


def test_encode_of_a_part_needs_a_file(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "--model", str(checkpoint), "--shard", "1/2", "x"]) == 2
    assert "--shard: expected --file" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="needs a path to a pipe")
def test_encode_of_a_part_refuses_a_pipe(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe, such as <(zcat FILE), cannot be read twice: the second time it is empty."""
    end, start = os.pipe()
    os.write(start, b"one\n")
    os.close(start)
    pipe, output = f"/dev/fd/{end}", tmp_path / "x.npy"
    arguments = ["encode", "--model", str(checkpoint), "--shard", "1/1", "--file", pipe, "--output", str(output)]
    try:
        assert main(arguments) == 2
    finally:
        os.close(end)
    assert f"--shard: expected a regular file, which is read twice, got {pipe}" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, about the overflow
@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("command", [["encode", "--output", "{}/x.npy"], ["encode"], ["align"]])
def test_vectors_that_overflow_are_an_error(
    command: list[str], backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    weights = load_file(checkpoint / "model.safetensors")
    name = next(name for name in weights if name.endswith("embeddings.layer_norm.weight"))
    weights[name] = np.full_like(weights[name], 1e38)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    arguments = [part.format(tmp_path) for part in command]
    assert main([*arguments, "--backend", backend, "--model", str(checkpoint), "one two", "three"]) == 2
    captured = capsys.readouterr()
    assert "model: expected finite outputs, got " in captured.err
    assert captured.out == ""
    assert not (tmp_path / "x.npy").exists()


def test_encode_rejects_overwrite_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "--overwrite", "x"]) == 2
    assert "--overwrite: expected --output FILE too" in capsys.readouterr().err
