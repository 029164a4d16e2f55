from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import ids_like, random_model

import ernie_m.reference as ernie
from ernie_m.reference.parameters import flatten
from ernie_m.reference.training import train


def batches(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of length 1 to 7; the label is whether the first id is odd."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        mask = (np.arange(7) < rng.integers(1, 8, (8, 1))).astype(int)
        ids = ids_like(mask, int(rng.integers(1000)))
        found.append({"input_ids": ids, "attention_mask": mask, "labels": ids[:, 0] % 2})
    return found


def test_a_model_learns() -> None:
    """From chance, log 2, to less than a tenth of it on batches never seen."""
    model = random_model(ernie.ErnieMForSequenceClassification, hidden_dropout_prob=0.1)
    rng = np.random.default_rng(1)
    steps = list(train(model, batches(250), rate=2e-3, total=250, warmup=20, rng=rng))
    assert [step.number for step in steps] == list(range(250))
    assert steps[0].rate == 0
    assert max(step.rate for step in steps) == 2e-3
    unseen = batches(5, seed=9)
    before, after = (np.mean([m(**batch).loss for batch in unseen]) for m in (model, steps[-1].model))
    assert before > 0.5
    assert after < 0.1 * np.log(2)


def test_training_goes_on_where_it_stopped_bit_for_bit() -> None:
    """Half the steps, then the other half from their model, state and generator. Seen red with a fresh state."""
    model = random_model(ernie.ErnieMForSequenceClassification)
    given, options = batches(8), {"rate": 1e-3, "total": 8, "warmup": 2, "layer_decay": 0.8}
    whole = list(train(model, given, rng=np.random.default_rng(3), **options))
    rng = np.random.default_rng(3)
    half = list(train(model, given[:4], rng=rng, **options))[-1]
    rest = list(train(half.model, given[4:], rng=rng, state=half.state, **options))
    assert [step.number for step in rest] == [4, 5, 6, 7]
    assert [step.loss for step in rest] == [step.loss for step in whole[4:]]
    for path, array in flatten(rest[-1].model.parameters).items():
        np.testing.assert_array_equal(array, flatten(whole[-1].model.parameters)[path])


def test_training_leaves_the_first_model_alone_and_stops_with_the_batches() -> None:
    model = random_model(ernie.ErnieMForSequenceClassification)
    before = {path: array.copy() for path, array in flatten(model.parameters).items()}
    assert len(list(train(model, batches(2), rate=1e-3, total=10))) == 2
    for path, array in flatten(model.parameters).items():
        np.testing.assert_array_equal(array, before[path])


def test_a_loss_that_is_not_finite_ends_training() -> None:
    model = random_model(ernie.ErnieMForSequenceClassification)
    (batch,) = batches(1)
    batch["attention_mask"] = np.zeros_like(batch["attention_mask"])
    with pytest.raises(ValueError, match="step 0: expected a finite loss, got nan"):
        list(train(model, [batch], rate=1e-3, total=1))
