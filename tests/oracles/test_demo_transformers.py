"""The demo checkpoint in transformers 4.40.2: a complete ERNIE-M directory, with the same outputs as here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_m.reference import ErnieMModel, demo
from ernie_m.tokenizer import ErnieMTokenizer

torch = pytest.importorskip("torch", reason="torch is not installed: there is nothing to compare the demo with")
transformers = pytest.importorskip(
    "transformers", reason="transformers 4.40.2 is not installed (it has no release for Python 3.13)"
)

DEMO = Path(__file__).resolve().parents[2] / "reference" / "demo"
SENTENCES = demo.sentences()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def encoded(tokenizer: Any) -> Any:
    """The batch of sentences, and the float64 output of transformers' model."""
    batch = tokenizer(SENTENCES, padding=True, return_attention_mask=True, return_tensors="pt")
    model, report = transformers.AutoModel.from_pretrained(DEMO, output_loading_info=True)
    # The head that predicts words is ours: transformers has no class for it.
    others = [name for name in report.pop("unexpected_keys") if not name.startswith("cls.predictions.")]
    assert type(model).__name__ == "ErnieMModel" and not others and not any(report.values()), report
    with torch.no_grad():
        return batch, model.double().eval()(**batch)


def cosines(vectors: np.ndarray) -> np.ndarray:  # (B, E) -> (B, B)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def test_tokenizer_ids_equal_transformers_on_the_whole_corpus(tokenizer: Any) -> None:
    lines = [*SENTENCES]
    for path in sorted((DEMO.parents[1] / "tests" / "fixtures" / "sentences").glob("*.txt")):
        lines += path.read_text("utf-8").splitlines()
    assert len(tokenizer) == len((DEMO / "vocab.txt").read_text("utf-8").splitlines())
    ours = ErnieMTokenizer.from_pretrained(DEMO)(lines)["input_ids"]
    assert list(ours) == tokenizer(lines)["input_ids"]


def test_transformers_knows_every_token_of_the_sentences(tokenizer: Any) -> None:
    for line in SENTENCES:
        ids = tokenizer(line)["input_ids"]
        assert ids[0] == 0 and ids[-1] == 2 and tokenizer.unk_token_id not in ids, line


def test_model_outputs_equal_transformers(encoded: Any) -> None:
    batch, expected = encoded
    mask = batch["attention_mask"].numpy()
    found = ErnieMModel.from_pretrained(DEMO, dtype=np.float64)(batch["input_ids"].numpy(), attention_mask=mask)
    # Both in float64, as in every parity test of the model.
    valid = mask == 1
    np.testing.assert_allclose(
        found.last_hidden_state[valid], expected.last_hidden_state.numpy()[valid], rtol=0, atol=1e-10
    )
    np.testing.assert_allclose(found.pooler_output, expected.pooler_output.numpy(), rtol=0, atol=1e-10)


def test_sentence_vectors_differ_visibly(encoded: Any) -> None:
    batch, output = encoded
    mask = batch["attention_mask"].numpy()[..., None]
    states = output.last_hidden_state.numpy()
    others = ~np.eye(len(SENTENCES), dtype=bool)
    for vectors in ((states * mask).sum(1) / mask.sum(1), states[:, 0], output.pooler_output.numpy()):
        table = cosines(vectors)[others]
        # To two decimals, no pair of sentences prints as 1.00, and the values are not all alike.
        assert table.max() < 0.995 and table.max() - table.min() > 0.05, table
