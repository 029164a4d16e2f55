from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import CLASSES, SMALL, random_model

import ernie_m.reference as ernie
from ernie_m.reference.parameters import flatten, shapes, unflatten


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("cls", CLASSES)
def test_save_pretrained_from_pretrained_round_trip(cls: Any, dtype: Any, tmp_path: Path) -> None:
    """Configuration and weights are bitwise equal; float16 loads as float32 unless float16 is requested."""
    model = random_model(cls, dtype=dtype, hidden_act="relu", default_mask="cls_token")
    model.save_pretrained(tmp_path / "checkpoint")
    back = cls.from_pretrained(tmp_path / "checkpoint", dtype=dtype)
    assert back.dtype == dtype and back.config.hidden_act == "relu" and back.config.default_mask == "cls_token"
    arrays = flatten(back.parameters)
    for path, array in flatten(model.parameters).items():
        np.testing.assert_array_equal(arrays.pop(path), array)
    assert not arrays
    assert cls.from_pretrained(tmp_path / "checkpoint").dtype == (np.float32 if dtype == np.float16 else dtype)


def test_an_empty_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be the current directory. Seen red: files beside the user's."""
    model, expected = random_model(), "^directory: expected a path, such as . for the current directory, got ''$"
    monkeypatch.chdir(tmp_path)
    for save in (model.save_pretrained, model.config.save_pretrained):
        with pytest.raises(ValueError, match=expected):
            save("")
    assert not any(tmp_path.iterdir())
    model.save_pretrained(".")
    for cls in (ernie.ErnieMModel, ernie.ErnieMConfig):
        with pytest.raises(ValueError, match=expected):
            cls.from_pretrained("")
        cls.from_pretrained(Path(""))


def test_save_pretrained_refuses_to_overwrite_by_default(tmp_path: Path) -> None:
    a, b = random_model(seed=1), random_model(seed=2)
    a.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=r"config\.json|model\.safetensors"):
        b.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"^overwrite: expected True or False, got 'no'$"):
        b.save_pretrained(tmp_path, overwrite="no")  # type: ignore[arg-type]
    for name in ("strict", "ignore_mismatched_sizes"):
        with pytest.raises(TypeError, match=rf"^{name}: expected True or False, got 'no'$"):
            ernie.ErnieMModel.from_pretrained(tmp_path, **{name: "no"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    b.save_pretrained(tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == before.keys()
    np.testing.assert_array_equal(
        ernie.ErnieMModel.from_pretrained(tmp_path).parameters.word_embeddings, b.parameters.word_embeddings
    )


def test_from_pretrained_initialises_a_new_head_from_the_seed_and_reports_it(tmp_path: Path, capsys: Any) -> None:
    random_model(dtype=np.float32).save_pretrained(tmp_path)
    capsys.readouterr()
    cls = ernie.ErnieMForSequenceClassification
    one, two, other = (cls.from_pretrained(tmp_path, num_labels=4, seed=seed) for seed in (1, 1, 2))
    assert "classifier" in capsys.readouterr().err
    head = [model.parameters.head["classifier"].weight for model in (one, two, other)]
    assert head[0].shape == (4, 24) and one.config.num_labels == 4
    np.testing.assert_array_equal(head[0], head[1])
    assert not np.array_equal(head[0], head[2])


def test_from_pretrained_head_checkpoint_into_the_bare_model(tmp_path: Path) -> None:
    model = random_model(ernie.ErnieMForSequenceClassification, dtype=np.float32)
    model.save_pretrained(tmp_path)
    bare = ernie.ErnieMModel.from_pretrained(tmp_path)
    assert not bare.parameters.head
    for path, array in flatten(bare.parameters).items():
        np.testing.assert_array_equal(array, flatten(model.parameters)[path])


def test_model_rejects_parameters_that_do_not_match_its_configuration() -> None:
    model = random_model()
    config = model.config.replace(intermediate_size=41)
    with pytest.raises(ValueError, match=r"parameters: layers.0.linear1.bias: expected shape \(41,\), got \(40,\)"):
        ernie.ErnieMModel(config, model.parameters)
    with pytest.raises(ValueError, match=r"parameters: head.classifier.bias: expected shape \(2,\), got none"):
        ernie.ErnieMForTokenClassification(model.config, model.parameters)


def test_state_dict_and_flatten_hold_the_models_own_arrays() -> None:
    model = random_model(ernie.ErnieMForQuestionAnswering)
    state, arrays = model.state_dict(), flatten(model.parameters)
    assert state["ernie_m.encoder.layers.1.self_attn.self_attn.q_proj.weight"] is arrays["layers.1.q_proj.weight"]
    assert state["qa_outputs.bias"] is arrays["head.qa_outputs.bias"] and len(state) == len(arrays)
    again = flatten(unflatten(arrays))
    assert list(again) == list(arrays) and all(again[path] is array for path, array in arrays.items())


@pytest.mark.parametrize("dtype", ["int8", "complex64", "float8", object(), "bfloat16"])
def test_from_config_rejects_other_dtypes(dtype: Any) -> None:
    with pytest.raises(ValueError, match="dtype: expected float16, float32 or float64, got"):
        ernie.ErnieMModel.from_config(ernie.ErnieMConfig(**SMALL), dtype=dtype)


def test_num_parameters_of_the_base_model() -> None:
    """Counted from the shapes: 278 million, two thirds of them word embeddings."""
    total = sum(int(np.prod(shape)) for shape in shapes(ernie.ErnieMConfig(), {}, True).values())
    assert total == 250002 * 768 + 514 * 768 + 2 * 768 + 12 * (12 * 768**2 + 13 * 768) + 768**2 + 768
    model = random_model()
    assert model.num_parameters() == sum(array.size for array in flatten(model.parameters).values())


def test_ignore_mismatched_sizes_initialises_only_what_does_not_fit(tmp_path: Path) -> None:
    """Another number of labels, as when a trained head is to be replaced; both classes that read files."""
    model = random_model(ernie.ErnieMForSequenceClassification, dtype=np.float32)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"classifier\.weight: expected"):
        ernie.ErnieMForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    changes = {"num_labels": 5, "ignore_mismatched_sizes": True, "seed": 3}
    found = ernie.ErnieMForSequenceClassification.from_pretrained(tmp_path, **changes).state_dict()
    assert found["classifier.weight"].shape == (5, model.config.hidden_size)
    for name, array in model.state_dict().items():
        if not name.startswith("classifier."):
            np.testing.assert_array_equal(found[name], array)
