"""The two backends of `Encoder`: the same vectors, in the same dtypes, on as many threads as asked for.

Seen red: a mean in half precision; [CLS] of the wrong row; a mean that divides by the padded length; rows that a batch
leaves out; a number of threads that is not restored; `train()` mode accepted.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import LONGEST, corpus, make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import MODEL_BOUND

from ernie_m.reference import ErnieMForTokenClassification, ErnieMModel
from ernie_m.reference.tasks import POOLINGS, Encoder
from ernie_m.reference.tasks.backends import backend_of, limited_threads
from ernie_m.reference.tasks.encoder import TOKENS, batches
from ernie_m.tokenizer import ErnieMTokenizer

LONG = " ".join(corpus("de")[:6])
SENTENCES = corpus("en", "ja", "ar", "th")
# Names that torch knows, of devices that it cannot use: it has no code for some, and no numbers on "meta".
UNUSABLE = (
    "mps:99",
    "vulkan",
    "xla",
    "mkldnn",
    "banana",
    "hpu:99",
    "meta",
    "privateuseone",
    "cuda:99",
    "cuda:99999999999999999999",
)
USABLE = r"device: expected one that torch can use here \(cpu(, \w+:\d+)*\)"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), num_attention_heads=1)


@pytest.fixture(scope="module")
def models(checkpoint: Path) -> tuple[Any, Any]:
    """The same model in NumPy and in torch, in float64."""
    kernels = pytest.importorskip("ernie_m.kernels", reason="torch is not installed", exc_type=ImportError)
    model = ErnieMModel.from_pretrained(checkpoint, dtype=np.float64)
    return model, kernels.ErnieMModel.from_reference(model)


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> ErnieMTokenizer:
    return ErnieMTokenizer.from_pretrained(checkpoint)


any_texts = st.lists(st.sampled_from([*SENTENCES, LONG, "", "a"]) | st.text(max_size=20), min_size=1, max_size=7)


@settings(max_examples=40)
@given(
    any_texts,
    st.sampled_from(POOLINGS),
    st.sampled_from(["truncate", "window-mean"]),
    st.tuples(*[st.none() | st.integers(1, 5)] * 2),
)
def test_vectors_are_those_of_the_other_backend(
    models: Any, tokenizer: ErnieMTokenizer, texts: list[str], pooling: str, long: str, sizes: Any
) -> None:
    """However each of them batches the texts."""
    ours, theirs = (
        Encoder(model, tokenizer, pooling, long, size).vectors(texts) for model, size in zip(models, sizes, strict=True)
    )
    assert ours.dtype == theirs.dtype == np.float64
    np.testing.assert_allclose(theirs, ours, rtol=MODEL_BOUND, atol=MODEL_BOUND)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("backend", ["numpy float16", "torch float16", "torch bfloat16"])
def test_vectors_of_half_precision_are_float32(models: Any, backend: str, pooling: str) -> None:
    """And a mean over tokens is exact up to what float32 rounds."""
    kind, dtype = backend.split()
    rows = [[0, *range(5, 5 + n), 2] for n in (3, 32, 1)]
    if kind == "numpy":
        model = models[0].astype(np.float16)
        out = [model(np.array([row])).last_hidden_state[0].astype(np.float64) for row in rows]
    else:
        torch = pytest.importorskip("torch")
        model = type(models[1]).from_reference(models[0], dtype=getattr(torch, dtype))
        with torch.no_grad():
            out = [model(torch.tensor([row])).last_hidden_state[0].double().numpy() for row in rows]
    found = backend_of(model).pooled(rows, pooling)
    assert found.dtype == np.float32
    if pooling == "mean":
        expected = np.array([hidden.mean(axis=0) for hidden in out])
        sizes = np.array([np.abs(hidden).mean(axis=0) for hidden in out])
        assert (np.abs(found - expected) <= 35 * 2.0**-24 * sizes).all()
    if pooling == "cls":
        np.testing.assert_array_equal(found, np.array([hidden[0] for hidden in out]))


@pytest.mark.parametrize("pooling", POOLINGS)
@settings(max_examples=10)
@given(any_texts, st.none() | st.integers(0, 1))
def test_a_model_that_learnt_without_cls_is_asked_so(
    models: Any, tokenizer: ErnieMTokenizer, pooling: str, texts: list[str], layer: int | None
) -> None:
    """As each text alone without a mask, and without a warning: seen red in both backends with the padding mask."""
    ours = models[0].from_config(models[0].config.replace(default_mask="cls_token"), dtype=np.float64)
    theirs = type(models[1]).from_reference(ours)
    layer = layer if pooling in ("cls", "mean") else None
    rows = [tokenizer(text, truncation=True, max_length=LONGEST)["input_ids"] for text in texts]
    alone = [ours(np.array([row]), output_hidden_states=True) for row in rows]
    states = [out.hidden_states[-1 if layer is None else layer][0] for out in alone]
    expected = {
        "cls": lambda: [x[0] for x in states],
        "mean": lambda: [x.mean(axis=0) for x in states],
        "pooler": lambda: [out.pooler_output[0] for out in alone],
        "first-last": lambda: [((out.hidden_states[1] + out.hidden_states[-1])[0] / 2).mean(axis=0) for out in alone],
    }[pooling]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (ours, theirs):
            encoder = Encoder(model, tokenizer, pooling, layer=layer)
            np.testing.assert_allclose(encoder.vectors(texts), expected, rtol=MODEL_BOUND, atol=MODEL_BOUND)
            if pooling in ("cls", "mean"):
                for found, x in zip(encoder.tokens(texts), states, strict=True):
                    np.testing.assert_allclose(found.vectors, x[1:-1], rtol=MODEL_BOUND, atol=MODEL_BOUND)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_another_mask_than_the_checkpoints_own(checkpoint: Path, backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    own, other = (Encoder.from_pretrained(checkpoint, backend=backend, default_mask=x) for x in (None, "cls_token"))
    assert (own.model.config.default_mask, other.model.config.default_mask) == ("pad_token", "cls_token")
    assert np.abs(own.vectors(["a b"]) - other.vectors(["a b"])).max() > 1e-3


def test_encoder_rejects_a_torch_model_in_train_mode(models: Any, tokenizer: ErnieMTokenizer) -> None:
    encoder = Encoder(models[1], tokenizer)
    models[1].train()
    try:
        with pytest.raises(ValueError, match=r"^model: expected one in eval\(\) mode, got one in train\(\) mode$"):
            encoder.vectors(["text"])
    finally:
        models[1].eval()


def test_encoder_rejects_any_other_model(tokenizer: ErnieMTokenizer, checkpoint: Path) -> None:
    model = ErnieMForTokenClassification.from_pretrained(checkpoint)
    with pytest.raises(
        TypeError, match=r"^model: expected an ErnieMModel of .*, got .*\.ErnieMForTokenClassification$"
    ):
        Encoder(model, tokenizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "jax"}, "backend: expected one of numpy, torch, got 'jax'"),
        ({"device": "cuda"}, "device: expected none, as the NumPy backend computes on the CPU, got 'cuda'"),
        *(({"backend": "torch", "device": x}, f"{USABLE}, got '{x}'") for x in UNUSABLE),
    ],
)
def test_encoder_rejects_a_wrong_backend_or_device(checkpoint: Path, arguments: dict[str, Any], message: str) -> None:
    """In one line, without a warning. Seen red: torch's own words, such as an internal assertion; for "meta", an error
    about a tensor, once encoding."""
    if arguments.get("backend") == "torch":
        pytest.importorskip("torch")
    with warnings.catch_warnings(), pytest.raises(ValueError, match=f"^{message}$"):
        warnings.simplefilter("error")
        Encoder.from_pretrained(checkpoint, **arguments)


@settings(max_examples=200)
@given(st.lists(st.integers(2, LONGEST) | st.sampled_from([512, TOKENS, TOKENS + 1])), st.none() | st.integers(1, 9))
def test_batches_hold_every_row_once_by_length_and_are_full(lengths: list[int], batch_size: int | None) -> None:
    found = list(batches(lengths, batch_size))
    order = [j for chosen in found for j in chosen]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[j] for j in order] == sorted(lengths)
    if batch_size is not None:
        assert [len(chosen) for chosen in found[:-1]] == [batch_size] * (len(found) - 1)
        assert all(1 <= len(chosen) <= batch_size for chosen in found)
        return
    tokens = [sum(lengths[j] for j in chosen) for chosen in found]
    assert all(n <= TOKENS or len(chosen) == 1 for n, chosen in zip(tokens, found, strict=True))
    assert all(n + lengths[after[0]] > TOKENS for n, after in zip(tokens, found[1:], strict=False))


def threads_of(backend: str) -> set[int]:
    if backend == "torch":
        return {pytest.importorskip("torch").get_num_threads()}
    control = pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")
    return {library["num_threads"] for library in control.threadpool_info() if library["user_api"] == "blas"}


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_limited_threads_restores_the_number(backend: str) -> None:
    before = threads_of(backend)
    for n in (1, 2, 3):
        with pytest.raises(KeyError), limited_threads(backend, n):
            assert threads_of(backend) == {n}
            raise KeyError
        assert threads_of(backend) == before
    with limited_threads(backend, None):
        assert threads_of(backend) == before


def test_limited_threads_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    message = r"^threads need threadpoolctl: pip install 'ernie-m\[threads\]'$"
    with pytest.raises(ImportError, match=message), limited_threads("numpy", 2):
        pass
    with limited_threads("numpy", None):
        pass
