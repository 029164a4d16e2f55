"""`Encoder`'s layers, centring, token vectors: what the model's hidden states say, in any batch, order and thread.

Seen red: the last layer for any other; first-last from the embeddings; a mean of the wrong language; a vector
normalised before it is centred; token vectors from [CLS] on; windows added up and not averaged; a count of truncated
texts that two threads lose; a warning for every call.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import LONGEST, corpus, make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import MODEL_BOUND

from ernie_m.reference import ErnieMModel, demo
from ernie_m.reference.cli.program import main
from ernie_m.reference.tasks import POOLINGS, Encoder, Recorded, read_recorded
from ernie_m.reference.tasks.backends import limited_threads
from ernie_m.reference.tasks.long_texts import window_starts
from ernie_m.tokenizer import ErnieMTokenizer

L, E = 3, 16
MEANS = {name: np.random.default_rng(i).standard_normal(E) for i, name in enumerate(("de", "en", "ja"))}
LONG = " ".join(corpus("de")[:6])
SENTENCES = corpus("en", "ja", "ar", "th")[::7]
ROUNDING = 1e-12

any_texts = st.lists(st.sampled_from([*SENTENCES, LONG, "", "a"]) | st.text(max_size=20), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_checkpoint(tmp_path_factory.mktemp("checkpoint"), num_hidden_layers=L)
    means = {name: mean.tolist() for name, mean in MEANS.items()}
    (directory / "retrieval.json").write_text(json.dumps({"layer": 2, "language_means": means}))
    return directory


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> ErnieMModel:
    found: ErnieMModel = ErnieMModel.from_pretrained(checkpoint, dtype=np.float64)
    return found


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> ErnieMTokenizer:
    return ErnieMTokenizer.from_pretrained(checkpoint)


def hidden_states(model: ErnieMModel, ids: Sequence[int], pooling: str, layer: int) -> np.ndarray:  # (S,) -> (S, E)
    """What a pooling reads of a row that is run alone."""
    states = model(np.array([ids]), output_hidden_states=True).hidden_states
    assert states is not None
    found: np.ndarray = (states[1][0] + states[L][0]) / 2 if pooling == "first-last" else states[layer][0]
    return found


def pooled(model: ErnieMModel, ids: Sequence[int], pooling: str, layer: int) -> np.ndarray:  # (S,) -> (E,)
    if pooling == "pooler":
        out = model(np.array([ids])).pooler_output
        assert out is not None
        return out[0]
    hidden = hidden_states(model, ids, pooling, layer)
    return hidden[0] if pooling == "cls" else hidden.mean(axis=0)


def assert_close(found: np.ndarray, expected: Any, bound: float = ROUNDING) -> None:
    """Equal but for rounding, relative to the largest number, or to 1."""
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * max(1.0, np.abs(expected).max(initial=0.0)))


@pytest.mark.parametrize(("pooling", "center"), [*((pooling, False) for pooling in POOLINGS), ("mean", True)])
@pytest.mark.parametrize("normalize", [False, True])
@settings(max_examples=15)
@given(any_texts, st.integers(0, L), st.none() | st.integers(1, 5), st.permutations(sorted(MEANS)))
def test_vectors_are_computed_from_the_hidden_states_of_each_text_alone(
    model: ErnieMModel, tokenizer: ErnieMTokenizer, pooling: str, center: bool, normalize: bool, texts: list[str],
    layer: int, size: int | None, order: list[str],
) -> None:  # fmt: skip
    """By any layer and batch; centred first, then normalised."""
    chosen = layer if pooling in ("cls", "mean") else None
    recorded = Recorded(layer, MEANS) if center else None
    options: dict[str, Any] = {"layer": chosen, "normalize": normalize, "center": center, "recorded": recorded}
    encoder = Encoder(model, tokenizer, pooling, batch_size=size, **options)
    languages = (order * 2)[: len(texts)]
    found = encoder.vectors(texts, language=languages if center else None)
    rows = tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
    expected = np.array([pooled(model, row, pooling, layer) for row in rows])
    if center:
        expected -= np.array([MEANS[name] for name in languages])
    if normalize:
        expected /= np.sqrt((expected**2).sum(axis=1))[:, None]
    assert_close(found, expected)


@settings(max_examples=40)
@given(any_texts, st.sampled_from(["cls", "mean", "first-last"]), st.booleans(), st.booleans(), st.integers(1, 5))
def test_tokens_are_the_hidden_states_between_cls_and_sep_with_their_spans(
    model: ErnieMModel, tokenizer: ErnieMTokenizer, texts: list[str], pooling: str, center: bool, windows: bool,
    size: int,
) -> None:  # fmt: skip
    """Of any Unicode text. A token in several windows has the mean of what it is in each of them."""
    center = center and pooling == "mean"
    options: dict[str, Any] = {"center": center, "recorded": Recorded(2, MEANS)} if pooling == "mean" else {}
    encoder = Encoder(model, tokenizer, pooling, "window-mean" if windows else "truncate", size, **options)
    found = encoder.tokens(texts, language="ja" if center else None)
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    longest = LONGEST - 2
    for i, (vectors, spans) in enumerate(found):
        ids, whole = batch["input_ids"][i], batch["offset_mapping"][i]
        starts = window_starts(len(ids), longest) if len(ids) > longest and windows else [0]
        kept = len(ids) if windows else min(len(ids), longest)
        assert spans == whole[:kept]
        seen: list[list[np.ndarray]] = [[] for _ in range(kept)]
        for start in starts:
            row = [0, *ids[start : start + longest], 2]
            for j, x in enumerate(hidden_states(model, row, pooling, encoder.layer)[1:-1]):
                seen[start + j].append(x)
        expected = np.array([np.mean(x, axis=0) for x in seen]).reshape(kept, E)
        assert_close(vectors, expected - (MEANS["ja"] if center else 0.0))


def test_spans_of_tokens_are_the_words_characters(model: ErnieMModel, tokenizer: ErnieMTokenizer) -> None:
    (_, spans), (_, none) = Encoder(model, tokenizer).tokens(["Select  the cell.", ""])
    text = "Select  the cell."
    assert "".join(text[start:end] for start, end in spans) == "Selectthecell."
    assert [end for _, end in spans][-1] == len(text) and none == []


@settings(max_examples=30)
@given(any_texts, st.sampled_from(POOLINGS), st.booleans())
def test_both_backends_agree_on_layers_and_tokens(
    model: ErnieMModel, tokenizer: ErnieMTokenizer, texts: list[str], pooling: str, inner: bool
) -> None:
    kernels = pytest.importorskip("ernie_m.kernels", reason="torch is not installed", exc_type=ImportError)
    layer = 1 if inner and pooling in ("cls", "mean") else None
    twin = kernels.ErnieMModel.from_reference(model)
    ours, theirs = (Encoder(x, tokenizer, pooling, "window-mean", layer=layer) for x in (model, twin))
    assert_close(theirs.vectors(texts), ours.vectors(texts), MODEL_BOUND)
    if pooling != "pooler":
        for (x, spans), (y, same) in zip(theirs.tokens(texts), ours.tokens(texts), strict=True):
            assert_close(x, y, MODEL_BOUND)
            assert spans == same


@settings(max_examples=30)
@given(any_texts.flatmap(lambda texts: st.tuples(st.just(texts), st.permutations(range(len(texts))))))
def test_vectors_do_not_depend_on_order_and_repeat_bit_for_bit(
    model: ErnieMModel, tokenizer: ErnieMTokenizer, given_texts: tuple[list[str], list[int]]
) -> None:
    texts, order = given_texts
    encoder = Encoder(model, tokenizer, long="window-mean", layer=1)
    vectors = encoder.vectors(texts)
    np.testing.assert_array_equal(encoder.vectors(texts), vectors)
    assert_close(encoder.vectors([texts[i] for i in order]), vectors[order])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors_do_not_depend_on_the_number_of_threads(
    model: ErnieMModel, tokenizer: ErnieMTokenizer, dtype: Any
) -> None:
    """Not in one bit, in one call of the model that has several groups of sequences (see `groups`).

    torch promises no such thing: how it divides a matrix product among threads depends on the processor.
    """
    pytest.importorskip("threadpoolctl")
    encoder = Encoder(model.astype(dtype), tokenizer, layer=1)
    texts = corpus("en", "ja", "ar", "th", "de")
    found = []
    for threads in (1, 2, 4):
        with limited_threads("numpy", threads):
            found.append([encoder.vectors(texts), *(x for x, _ in encoder.tokens(texts[:40]))])
    for others in found[1:]:
        for x, y in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(x, y)


def test_threads_share_an_encoder(checkpoint: Path) -> None:
    """Eight of them, on texts of which some are truncated, get the bits that one gets; no count is lost."""
    texts = [[*SENTENCES[i : i + 3], LONG, LONG] for i in range(8)] * 4
    alone = Encoder.from_pretrained(checkpoint, center=True)
    expected = [alone.vectors(some, language="de") for some in texts]
    tokens = [alone.tokens(some, language="de") for some in texts]
    shared = Encoder.from_pretrained(checkpoint, center=True)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda some: shared.vectors(some, language="de"), texts))
            found_tokens = list(pool.map(lambda some: shared.tokens(some, language="de"), texts))
    finally:
        sys.setswitchinterval(interval)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)
    for some, others in zip(found_tokens, tokens, strict=True):
        for (x, spans), (y, same) in zip(some, others, strict=True):
            np.testing.assert_array_equal(x, y)
            assert spans == same
    assert shared.truncated == alone.truncated >= 2 * 2 * len(texts)


def test_no_thread_loses_the_count_of_another(model: ErnieMModel, tokenizer: ErnieMTokenizer) -> None:
    """Each of these texts lets other threads run while its length is read."""

    class Slow(list[int]):
        def __len__(self) -> int:
            time.sleep(1e-4)
            return super().__len__()

    class SlowTokenizer:
        build_inputs_with_special_tokens = tokenizer.build_inputs_with_special_tokens

        def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
            return {"input_ids": [Slow([5] * 50) for _ in texts]}

    encoder = Encoder(model, SlowTokenizer())  # type: ignore[arg-type]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: encoder.token_rows(["text"] * 3), range(40)))
    assert encoder.truncated == 120


@pytest.mark.parametrize("pooling", POOLINGS)
def test_only_the_mean_takes_the_recorded_layer(checkpoint: Path, tmp_path: Path, pooling: str) -> None:
    """And without a record, nothing does; what the record does not touch is the same, bit for bit."""
    plain = make_checkpoint(tmp_path, num_hidden_layers=L)
    recorded, last = (Encoder.from_pretrained(folder, pooling) for folder in (checkpoint, plain))
    assert last.layer == L and recorded.layer == (2 if pooling == "mean" else L)
    same = np.array_equal(recorded.vectors(SENTENCES), last.vectors(SENTENCES))
    assert same == (pooling != "mean")
    if pooling == "mean":
        chosen = Encoder.from_pretrained(checkpoint, layer=L).vectors(SENTENCES)
        np.testing.assert_array_equal(chosen, last.vectors(SENTENCES))


def test_command_takes_layer_and_centring(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["--", *SENTENCES[:3], ""]
    for name, arguments, options, language in (
        ("recorded", ["--center", "--language", "ja"], {"center": True}, "ja"),
        ("layer", ["--layer", "0", "--normalize"], {"layer": 0, "normalize": True}, None),
        ("last", ["--pooling", "first-last"], {"pooling": "first-last"}, None),
    ):
        output = tmp_path / f"{name}.npy"
        assert main(["encode", "--model", str(checkpoint), *arguments, "--output", str(output), *texts]) == 0
        expected = Encoder.from_pretrained(checkpoint, **options).vectors(texts[1:], language=language)  # type: ignore
        np.testing.assert_array_equal(np.load(output), expected)
    assert capsys.readouterr().err == ""
    assert main(["encode", "--model", str(checkpoint), "--center", "--language", "sw", "text"]) == 0
    assert capsys.readouterr().err.startswith("ernie-m: center: the checkpoint has no mean vector of sw (it has those")


@pytest.mark.parametrize("given_options", [["--center"], ["--language", "de"]])
def test_command_needs_center_and_language_together(given_options: list[str], capsys: Any) -> None:
    assert main(["encode", "text", *given_options]) == 2
    message = "--center and --language: expected both or neither, got one"
    assert capsys.readouterr().err == f"ernie-m: error: {message}\n"


def test_languages_without_a_mean_are_named_once_and_not_centred(model: ErnieMModel, tokenizer: Any) -> None:
    encoder = Encoder(model, tokenizer, center=True, recorded=Recorded(2, MEANS))
    with pytest.warns(UserWarning, match=r"^center: the checkpoint has no mean vector of sw, yo \(it has those of"):
        found = encoder.vectors(["a", "b", "c"], language=["sw", "de", "yo"])
    plain = Encoder(model, tokenizer, layer=2).vectors(["a", "b", "c"])
    assert_close(found, plain - np.array([np.zeros(E), MEANS["de"], np.zeros(E)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(encoder.vectors(["a"], language="yo"), plain[:1])
    with pytest.warns(UserWarning, match=r"no mean vector of de \(it has those of no language\)"):
        Encoder(model, tokenizer, center=True).tokens(["a"], language="de")


RECORDED = Recorded(2, MEANS)


@pytest.mark.parametrize(
    ("pooling", "options", "message"),
    [
        ("mean", {"layer": 4}, "layer: expected 0, the embeddings, to 3, the last, got 4"),
        ("mean", {"layer": -1}, "layer: expected 0, the embeddings, to 3, the last, got -1"),
        ("cls", {"layer": True}, "layer: expected 0, the embeddings, to 3, the last, got True"),
        ("pooler", {"layer": 3}, "layer: expected none with pooling pooler, which reads the last layer, got 3"),
        ("first-last", {"layer": 1}, "layer: expected none with pooling first-last, which reads the first and the las"),
        ("cls", {"center": True, "recorded": RECORDED}, "center: expected pooling mean at layer 2, for .* layer 3$"),
        ("mean", {"center": True, "recorded": RECORDED, "layer": 1}, "center: expected pooling mean at layer 2, .* 1$"),
        ("mean", {"recorded": Recorded(4, {})}, "layer: expected 0, the embeddings, to 3, the last, got 4"),
        ("mean", {"recorded": Recorded(1, {"de": np.ones(5)})}, r"recorded: .* of 16 numbers, got \(5,\) for de"),
    ],
)
def test_encoder_rejects_what_does_not_fit(
    model: ErnieMModel, tokenizer: ErnieMTokenizer, pooling: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Encoder(model, tokenizer, pooling, **options)


def test_calls_reject_a_language_that_does_not_fit(model: ErnieMModel, tokenizer: ErnieMTokenizer) -> None:
    plain = Encoder(model, tokenizer)
    centring = Encoder(model, tokenizer, center=True, recorded=RECORDED)
    np.testing.assert_array_equal(plain.vectors(["a", "b"]), plain.vectors(np.array(["a", "b"])))
    for call in (plain.vectors, plain.tokens):
        with pytest.raises(ValueError, match=r"^language: expected none without center=True, .*, got 'de'$"):
            call(["a"], language="de")
        with pytest.raises(TypeError, match=r"^texts: expected a list of texts, got one text, 'text'$"):
            call("text")
        for wrong, kind in ((None, "NoneType"), ({"a": 1}, "dict"), ((x for x in "a"), "generator")):
            with pytest.raises(TypeError, match=rf"^texts: expected a text or a list of texts, got {kind}$"):
                call(wrong)
        with pytest.raises(TypeError, match=r"^texts\[1\]: expected a text, got int$"):
            call(["a", 5])
        with pytest.raises(ValueError, match=r"^b: expected Unicode text, got lone surrogate U\+DC00 at position 1$"):
            call(["x", "y\udc00"], names=["a", "b"])
    for call in (centring.vectors, centring.tokens):
        with pytest.raises(ValueError, match=r"^language: expected one, or one for each text, .*, got None$"):
            call(["a"])
        with pytest.raises(ValueError, match=r"^language: expected one, or one for each of 3 texts, got 2$"):
            call(["a", "b", "c"], language=["de", "en"])
        with pytest.raises(TypeError, match=r"^language\[1\]: expected a text, got NoneType$"):
            call(["a", "b"], language=["de", None])
    with pytest.raises(ValueError, match=r"^pooling: expected cls, mean or first-last for vectors of tokens, got pool"):
        Encoder(model, tokenizer, "pooler").tokens(["a"])
    with pytest.raises(ValueError, match=r"^texts\[1\]: expected at most 34 tokens"):
        Encoder(model, tokenizer, long="error").tokens(["a", LONG])


def test_read_recorded_reads_what_demo_has_and_names_a_file_that_is_another(tmp_path: Path) -> None:
    assert read_recorded(tmp_path) is None
    found = read_recorded(demo.directory())
    assert found is not None and found.layer == 3 and set(found.language_means) == set(demo.languages())
    assert {mean.shape for mean in found.language_means.values()} == {(96,)}
    # With a byte order mark, as some editors write: seen red, refused.
    (tmp_path / "retrieval.json").write_bytes(b"\xef\xbb\xbf" + (demo.directory() / "retrieval.json").read_bytes())
    marked = read_recorded(tmp_path)
    assert marked is not None and (marked.layer, set(marked.language_means)) == (3, set(found.language_means))
    for text, said in (("{", "not a JSON file: "), ("[]", "expected a JSON object, got list")):
        (tmp_path / "retrieval.json").write_text(text)
        with pytest.raises(ValueError, match=rf"retrieval\.json: {said}"):
            read_recorded(tmp_path)
    for text in (
        '{"layer": 1}', '{"layer": 1.5, "language_means": {}}', '{"layer": 1, "language_means": []}',
        '{"layer": true, "language_means": {}}', '{"layer": 1, "language_means": {"de": "x"}}',
        '{"layer": 1, "language_means": {"de": [[1]]}}', '{"layer": 1, "language_means": {"de": [NaN]}}',
    ):  # fmt: skip
        (tmp_path / "retrieval.json").write_text(text)
        with pytest.raises(ValueError, match=r'retrieval\.json: expected {"layer": a whole number, "language_means"'):
            read_recorded(tmp_path)
