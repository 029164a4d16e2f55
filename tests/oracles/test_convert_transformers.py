"""Converted Paddle checkpoints load completely in transformers, which computes what paddlenlp computed."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import random_model
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ernie_m.reference.array import round_to_bfloat16
from ernie_m.reference.checkpoint.conversion import convert
from ernie_m.reference.checkpoint.paddle_pickle import read_pickle

torch = pytest.importorskip("torch", reason="torch is not installed: there is nothing to compare bits with")
FIXTURES = {
    "model": ("ErnieMModel", ("last_hidden_state", "pooler_output")),
    "seqcls": ("ErnieMForSequenceClassification", ("logits",)),
    "tokcls": ("ErnieMForTokenClassification", ("logits",)),
    "qa": ("ErnieMForQuestionAnswering", ("start_logits", "end_logits")),
    "mc": ("ErnieMForMultipleChoice", ("logits",)),
    "uiem": ("ErnieMForInformationExtraction", ("start_logits", "end_logits")),
}


@pytest.fixture
def transformers() -> Any:
    reason = "transformers 4.40.2 is not installed (it has no release for Python 3.13)"
    return pytest.importorskip("transformers", reason=reason)


@pytest.mark.parametrize("name", FIXTURES)
def test_convert_of_paddle_computes_the_same_in_transformers(
    name: str, fixtures: Path, tmp_path: Path, transformers: Any
) -> None:
    """Within 2e-6 at real tokens. Red if weights are not transposed; square ones then load without an error."""
    folder = fixtures / "paddle_tiny"
    convert(folder / name, tmp_path / "new")
    cls, fields = FIXTURES[name]
    model, info = getattr(transformers, cls).from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(info.values()), info
    expected = np.load(folder / "expected.npz")
    ids, mask = torch.tensor(expected["input_ids"]), torch.tensor(expected["attention_mask"])
    if name == "mc":
        ids, mask = ids[None], mask[None]
    with torch.no_grad():
        out = model.eval()(input_ids=ids, attention_mask=mask)
    for k, field in enumerate(fields):
        found, wanted = getattr(out, field), expected[f"{name}.explicit_mask.{k}"]
        found = (torch.sigmoid(found) if name == "uiem" else found).numpy()
        assert found.shape == wanted.shape
        valid = mask.numpy() == 1 if found.shape[:2] == mask.shape else np.ones(found.shape, bool)
        assert np.abs(found - wanted)[valid].max() <= 2e-6


@pytest.mark.parametrize(
    ("file", "turned"), [("model_state.pdparams", False), ("pytorch_model.bin", False), ("pytorch_model.bin", True)]
)
def test_convert_of_an_early_extraction_checkpoint_computes_the_same_in_transformers(
    file: str, turned: bool, fixtures: Path, tmp_path: Path, transformers: Any
) -> None:
    """PaddleNLP's UIEM of the time of `model_config.json`: its encoder is called `encoder`; and a torch file of it."""
    source, expected = fixtures / "paddle_tiny" / "uiem", np.load(fixtures / "paddle_tiny" / "expected.npz")
    arrays = read_pickle("uiem", memoryview((source / "model_state.pdparams").read_bytes()))
    arrays = {re.sub("^ernie_m[.]", "encoder.", name): array for name, array in arrays.items()}
    linear = {name for name, x in arrays.items() if x.ndim == 2 and "embeddings" not in name}
    folder = tmp_path / "old"
    folder.mkdir()
    if file.endswith(".bin"):
        state = {name: torch.tensor(x.T if turned and name in linear else x) for name, x in arrays.items()}
        torch.save({"model": state}, folder / file)
    else:
        (folder / file).write_bytes(pickle.dumps({name: np.array(x) for name, x in arrays.items()}, 4))
    values = json.loads((source / "config.json").read_text())
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    encoder = {"init_class": "ErnieMModel", **{name: values[name] for name in kept if name in values}}
    (folder / "model_config.json").write_text(json.dumps({"init_args": [encoder], "init_class": "UIEM"}))
    convert(folder, tmp_path / "new")
    model, info = transformers.ErnieMForInformationExtraction.from_pretrained(
        tmp_path / "new", output_loading_info=True
    )
    assert not any(info.values()), info
    ids, mask = torch.tensor(expected["input_ids"]), torch.tensor(expected["attention_mask"])
    with torch.no_grad():
        out = model.eval()(input_ids=ids, attention_mask=mask)
    for k, logits in enumerate((out.start_logits, out.end_logits)):
        wrong = np.abs(torch.sigmoid(logits).numpy() - expected[f"uiem.explicit_mask.{k}"])
        assert wrong[mask.numpy() == 1].max() <= 2e-6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_convert_writes_what_torch_rounds_to(dtype: str, tmp_path: Path, transformers: Any) -> None:
    """transformers loads the file, which has the bits that torch's rounding gives."""
    torch_dtype = getattr(torch, dtype)
    model = random_model(dtype=np.float32)
    model.save_pretrained(tmp_path / "old")
    convert(tmp_path / "old", tmp_path / "new", dtype)
    loaded, info = transformers.ErnieMModel.from_pretrained(
        tmp_path / "new", torch_dtype=torch_dtype, output_loading_info=True
    )
    assert not any(info.values()), info
    found = loaded.state_dict()
    for name, array in model.state_dict().items():
        assert found[name].dtype == torch_dtype
        assert torch.equal(found[name], torch.tensor(array).to(torch_dtype)), name


@given(npst.arrays(np.float32, st.integers(1, 64), elements=st.floats(width=32, allow_nan=False)))
def test_round_to_bfloat16_equals_torch(x: np.ndarray) -> None:
    assert_equals_torch(x)


def test_round_to_bfloat16_equals_torch_at_and_near_ties() -> None:
    """Every finite bfloat16, followed by 16 bits that are 0, 1, the tie, one of its neighbours, or all 1."""
    upper = np.arange(2**16, dtype=np.uint32) << 16
    below = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = (upper[:, None] | below).reshape(-1)
    assert_equals_torch(bits[bits >> 23 & 0xFF != 0xFF].view(np.float32))


def assert_equals_torch(x: np.ndarray) -> None:
    wanted = torch.tensor(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(round_to_bfloat16(x), wanted)
