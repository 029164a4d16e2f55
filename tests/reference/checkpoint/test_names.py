"""The table of names: paths to names in both formats, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import CLASSES, SMALL

from ernie_m.reference import ErnieMConfig
from ernie_m.reference.checkpoint import names
from ernie_m.reference.parameters import shapes

CONFIG = ErnieMConfig(**SMALL)
STRAYS = (
    "encoder.layers.0.norm3.weight",
    "classifier",
    "qa_outputs.gain",
    "ernie_m.word_embeddings",
    "embeddings.word_embeddings.weight.bias",
)
ALL_PATHS = [shapes(CONFIG, cls.head_sizes(CONFIG), True, cls.predicts_words) for cls in CLASSES]


def test_file_name_of_examples() -> None:
    """As transformers and paddlenlp write them."""
    for path, huggingface, paddle in [
        ("word_embeddings", "ernie_m.embeddings.word_embeddings.weight", None),
        ("layer_norm.bias", "ernie_m.embeddings.layer_norm.bias", None),
        (
            "layers.11.q_proj.weight",
            "ernie_m.encoder.layers.11.self_attn.self_attn.q_proj.weight",
            "ernie_m.encoder.layers.11.self_attn.q_proj.weight",
        ),
        ("layers.1.out_proj.bias", "ernie_m.encoder.layers.1.self_attn.out_proj.bias", None),
        ("layers.0.norm2.weight", "ernie_m.encoder.layers.0.norm2.weight", None),
        ("pooler.weight", "ernie_m.pooler.dense.weight", None),
        ("head.qa_outputs.bias", "qa_outputs.bias", "classifier.bias"),
        ("head.linear_end.weight", "linear_end.weight", None),
        # As BERT's masked language model has them.
        ("prediction.bias", "cls.predictions.bias", None),
        ("prediction.dense.weight", "cls.predictions.transform.dense.weight", None),
        ("prediction.layer_norm.bias", "cls.predictions.transform.LayerNorm.bias", None),
    ]:
        assert names.file_name(path, names.HUGGINGFACE, "ernie_m.") == huggingface
        assert names.file_name(path, names.PADDLE, "ernie_m.") == (paddle or huggingface)


@pytest.mark.parametrize("wanted", ALL_PATHS)
def test_file_name_is_unique_and_reveals_the_format(wanted: dict[str, tuple[int, ...]]) -> None:
    for form in (names.HUGGINGFACE, names.PADDLE):
        assert len({names.file_name(path, form) for path in wanted}) == len(wanted)
        prefixed = [names.file_name(path, form, names.PREFIX) for path in wanted]
        assert names.prefix_of(prefixed) == names.PREFIX
        assert names.format_of(prefixed) == form
        assert names.format_of(names.file_name(path, form) for path in wanted) == form
    assert names.prefix_of(names.file_name(path, form) for path in wanted) == ""


@pytest.mark.parametrize("wanted", ALL_PATHS)
def test_to_huggingface_from_huggingface_round_trip(wanted: dict[str, tuple[int, ...]]) -> None:
    arrays = {path: object() for path in wanted}
    state = names.to_huggingface(arrays)  # type: ignore[arg-type]
    assert names.prefix_of(state) == (names.PREFIX if any(path.startswith(names.ON_TOP) for path in wanted) else "")
    assert names.from_huggingface(state) == arrays
    assert names.from_huggingface({**state, "ernie_m.embeddings.position_ids": object()}) == arrays  # type: ignore[dict-item]
    for stray in STRAYS:
        with pytest.raises(ValueError, match=f"^{stray}: not the name of a weight"):
            names.from_huggingface({stray: object()})  # type: ignore[dict-item]


def test_is_transposed_only_for_linear_weights_of_paddle() -> None:
    for wanted in ALL_PATHS:
        for path, shape in wanted.items():
            linear = len(shape) == 2 and not path.endswith("embeddings")
            assert names.is_transposed(path, names.PADDLE) == linear
            assert not names.is_transposed(path, names.HUGGINGFACE)


@pytest.mark.parametrize(
    ("name", "huggingface", "paddle"),
    [
        ("classifier.weight", True, True),
        ("qa_outputs.bias", True, False),
        ("linear_start.weight", True, True),
        ("ernie_m.pooler.dense.bias", True, True),
        ("pooler.dense.weight", True, True),
        ("embeddings.position_ids", True, True),
        ("ernie_m.embeddings.token_type_ids", True, True),
        ("classifier.gain", False, False),
        ("classifier", False, False),
        ("pooler.weight", False, False),
        ("encoder.layers.2.norm1.weight", False, False),
    ],
)
def test_unused_is_true_for_known_optional_names(name: str, huggingface: bool, paddle: bool) -> None:
    assert names.unused(name, names.HUGGINGFACE) == huggingface
    assert names.unused(name, names.PADDLE) == paddle


@pytest.mark.parametrize(
    ("modules", "architecture"),
    [
        (["pooler.dense"], "ErnieMModel"),
        ([], "ErnieMModel"),
        (["classifier", "ernie_m.pooler.dense"], "ErnieMForSequenceClassification"),
        (["classifier"], "ErnieMForTokenClassification"),
        (["qa_outputs"], "ErnieMForQuestionAnswering"),
        (["linear_start", "linear_end", "ernie_m.pooler.dense"], "ErnieMForInformationExtraction"),
    ],
)
def test_architecture_of_is_inferred_unless_configured(modules: list[str], architecture: str) -> None:
    stored = [f"{module}.weight" for module in modules]
    assert names.architecture_of(None, stored) == architecture
    assert names.architecture_of(CONFIG.replace(architectures=("Mine",)), stored) == architecture
    # The configuration decides: in Paddle, question answering also has a `classifier`.
    configured = CONFIG.replace(architectures=("ErnieMForQuestionAnswering",))
    assert names.architecture_of(configured, stored) == "ErnieMForQuestionAnswering"
    assert names.architecture_of(CONFIG.replace(architectures=("UIEM",)), stored) == "ErnieMForInformationExtraction"


def test_stored_names_are_in_one_file(repository: Path) -> None:
    """Red if a stored name is written anywhere else in `reference/`."""
    for stored in ("word_embeddings.weight", "self_attn.q_proj", "pooler.dense"):
        found = [path.name for path in (repository / "reference").rglob("*.py") if stored in path.read_text("utf-8")]
        assert found == ["names.py"], (stored, found)
