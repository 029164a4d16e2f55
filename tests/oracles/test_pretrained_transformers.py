"""Each side loads what the other saved, with equal outputs up to float32 rounding: every class, both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import PUBLISHED, SMALL, random_model

import ernie_m.reference as ernie

torch = pytest.importorskip("torch", reason="torch is not installed: there is nothing to exchange checkpoints with")
transformers = pytest.importorskip(
    "transformers", reason="transformers 4.40.2 is not installed (it has no release for Python 3.13)"
)
FIELDS = ("last_hidden_state", "pooler_output", "logits", "start_logits", "end_logits")


def assert_same_outputs(cls: Any, model: Any, hf: Any) -> None:
    """Float32 outputs on a batch with padding; both sides' errors are some tens of 2^-24."""
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    ids = np.random.default_rng(0).integers(2, 50, mask.shape)
    shape = (1, *mask.shape) if "Choice" in cls.__name__ else mask.shape
    ours = model(ids.reshape(shape), attention_mask=mask.reshape(shape))
    with torch.no_grad():
        theirs = hf.eval()(torch.tensor(ids.reshape(shape)), attention_mask=torch.tensor(mask.reshape(shape)))
    compared = 0
    for field in FIELDS:
        if getattr(ours, field, None) is not None:
            found, wanted = getattr(ours, field), getattr(theirs, field).numpy()
            valid = mask == 1 if found.shape[:2] == mask.shape else np.ones(found.shape, bool)
            # After a few layers, each side's error is some 30 roundings of numbers of this size.
            assert np.abs(found - wanted)[valid].max() <= 64 * 2.0**-24 * max(1, np.abs(wanted[valid]).max())
            compared += 1
    assert compared >= 1


@pytest.mark.parametrize("cls", PUBLISHED)
def test_save_pretrained_loads_in_transformers(cls: Any, tmp_path: Path) -> None:
    model = random_model(cls, dtype=np.float32)
    model.save_pretrained(tmp_path / "checkpoint")
    hf, info = getattr(transformers, cls.__name__).from_pretrained(tmp_path / "checkpoint", output_loading_info=True)
    assert not any(info.values()), info
    assert_same_outputs(cls, model, hf)


@pytest.mark.parametrize("cls", PUBLISHED)
def test_from_pretrained_loads_what_transformers_saved(cls: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    hf = getattr(transformers, cls.__name__)(transformers.ErnieMConfig(**SMALL))
    hf.save_pretrained(tmp_path / "checkpoint")
    assert_same_outputs(cls, cls.from_pretrained(tmp_path / "checkpoint"), hf)


def test_save_pretrained_pruned_and_resized_loads_in_transformers(tmp_path: Path) -> None:
    cls = ernie.ErnieMForTokenClassification
    model = random_model(cls, dtype=np.float32, num_labels=5).prune_heads({0: [1], 1: [0, 2]})
    model = model.resize_token_embeddings(61)
    model.save_pretrained(tmp_path / "checkpoint")
    hf, info = transformers.ErnieMForTokenClassification.from_pretrained(
        tmp_path / "checkpoint", output_loading_info=True
    )
    assert not any(info.values()), info
    assert hf.get_input_embeddings().weight.shape[0] == 61
    assert_same_outputs(cls, model, hf)
    assert_same_outputs(cls, cls.from_pretrained(tmp_path / "checkpoint"), hf)


def test_from_pretrained_loads_what_transformers_pruned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hf = transformers.ErnieMModel(transformers.ErnieMConfig(**SMALL))
    hf.prune_heads({1: [0, 1]})
    hf.save_pretrained(tmp_path / "checkpoint")
    model = ernie.ErnieMModel.from_pretrained(tmp_path / "checkpoint")
    assert model.config.pruned_heads == {1: (0, 1)}
    assert_same_outputs(ernie.ErnieMModel, model, hf)


def compiled(model: Any) -> Any:
    return torch.compile(model)


def parallel(model: Any) -> Any:
    return torch.nn.DataParallel(model)


@pytest.mark.parametrize("wrappers", [(parallel,), (compiled,), (compiled, parallel), (parallel, compiled, parallel)])
@pytest.mark.parametrize("entry", [None, "state_dict"])
def test_from_pretrained_loads_what_torch_wrapped(wrappers: Any, entry: str | None, tmp_path: Path) -> None:
    """A `pytorch_model.bin` written by a training loop: the names are torch's own."""
    cls = ernie.ErnieMForTokenClassification
    torch.manual_seed(0)
    hf = transformers.ErnieMForTokenClassification(transformers.ErnieMConfig(**SMALL))
    hf.config.save_pretrained(tmp_path)
    wrapped = hf
    for wrap in wrappers:
        wrapped = wrap(wrapped)
    state = wrapped.state_dict()
    assert not state.keys() & hf.state_dict().keys()
    torch.save(state if entry is None else {"epoch": 1, entry: state, "optimizer": {}}, tmp_path / "pytorch_model.bin")
    assert_same_outputs(cls, cls.from_pretrained(tmp_path), hf)


def test_from_pretrained_loads_an_average_and_compiled_parts(tmp_path: Path) -> None:
    cls = ernie.ErnieMForTokenClassification
    torch.manual_seed(0)
    hf = transformers.ErnieMForTokenClassification(transformers.ErnieMConfig(**SMALL))
    hf.config.save_pretrained(tmp_path)
    torch.save(torch.optim.swa_utils.AveragedModel(hf).state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_outputs(cls, cls.from_pretrained(tmp_path), hf)
    hf.ernie_m.encoder.layers[0] = torch.compile(hf.ernie_m.encoder.layers[0])
    hf.ernie_m = torch.compile(hf.ernie_m)
    assert "ernie_m._orig_mod.encoder.layers.0._orig_mod.norm1.bias" in hf.state_dict()
    torch.save(hf.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = cls.from_pretrained(tmp_path)
    hf.ernie_m = hf.ernie_m._orig_mod
    hf.ernie_m.encoder.layers[0] = hf.ernie_m.encoder.layers[0]._orig_mod
    assert_same_outputs(cls, loaded, hf)
