"""The six checkpoints written by paddlenlp, and the outputs it computed from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ernie_m.reference as ernie

CLASSES = {
    "model": (ernie.ErnieMModel, ("last_hidden_state", "pooler_output")),
    "seqcls": (ernie.ErnieMForSequenceClassification, ("logits",)),
    "tokcls": (ernie.ErnieMForTokenClassification, ("logits",)),
    "qa": (ernie.ErnieMForQuestionAnswering, ("start_logits", "end_logits")),
    "mc": (ernie.ErnieMForMultipleChoice, ("logits",)),
    "uiem": (ernie.ErnieMForInformationExtraction, ("start_prob", "end_prob")),
}


@pytest.mark.parametrize("attentions", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_paddle_with_an_explicit_mask(name: str, attentions: bool, fixtures: Path) -> None:
    """Within 2e-6 at real tokens. Red if weights are not transposed, and if positions start at row 0."""
    folder = fixtures / "paddle_tiny"
    expected = np.load(folder / "expected.npz")
    ids, mask = expected["input_ids"], expected["attention_mask"]
    cls, fields = CLASSES[name]
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if name == "mc":
        given = {key: value[None] for key, value in given.items()}
    out = cls.from_pretrained(folder / name)(**given, output_attentions=attentions)
    for k, field in enumerate(fields):
        found, wanted = getattr(out, field), expected[f"{name}.explicit_mask.{k}"]
        assert found.shape == wanted.shape
        valid = mask == 1 if found.shape[:2] == mask.shape else np.ones(found.shape, bool)
        assert np.abs(found - wanted)[valid].max() <= 2e-6


@pytest.mark.parametrize("name", CLASSES)
def test_paddle_with_the_default_mask(name: str, fixtures: Path) -> None:
    """Without a mask, with `default_mask="cls_token"`, which UIE-M has by itself: within 2e-6, padding included."""
    folder = fixtures / "paddle_tiny"
    expected = np.load(folder / "expected.npz")
    ids = expected["input_ids"]
    cls, fields = CLASSES[name]
    options = {} if name == "uiem" else {"default_mask": "cls_token"}
    out = cls.from_pretrained(folder / name, **options)(ids[None] if name == "mc" else ids)
    for k, field in enumerate(fields):
        wanted = expected[f"{name}.default_mask.{k}"]
        assert getattr(out, field).shape == wanted.shape
        assert np.abs(getattr(out, field) - wanted).max() <= 2e-6
