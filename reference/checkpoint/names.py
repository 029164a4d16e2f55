"""The names of the weights in files: one table, and functions that read it.

A path of `parameters.shapes` is the name of a module, followed by `.weight` or `.bias` for linear maps and
normalisations. If the model has a head, both formats put `ernie_m.` before the encoder's names. Paddle stores linear
weights as (inputs, outputs), so they must be transposed.

Source: the files that transformers 4.40.2 and paddlenlp 2.8.1 write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..array import Array
from ..config import ErnieMConfig

HUGGINGFACE, PADDLE = "huggingface", "paddle"
PREFIX = "ernie_m."

# Path -> name in Hugging Face's files, and in Paddle's if that differs; {i} is the layer.
TABLE: dict[str, tuple[str, ...]] = {
    "word_embeddings": ("embeddings.word_embeddings.weight",),
    "position_embeddings": ("embeddings.position_embeddings.weight",),
    "layer_norm": ("embeddings.layer_norm",),
    "layers.{i}.q_proj": ("encoder.layers.{i}.self_attn.self_attn.q_proj", "encoder.layers.{i}.self_attn.q_proj"),
    "layers.{i}.k_proj": ("encoder.layers.{i}.self_attn.self_attn.k_proj", "encoder.layers.{i}.self_attn.k_proj"),
    "layers.{i}.v_proj": ("encoder.layers.{i}.self_attn.self_attn.v_proj", "encoder.layers.{i}.self_attn.v_proj"),
    "layers.{i}.out_proj": ("encoder.layers.{i}.self_attn.out_proj",),
    "layers.{i}.norm1": ("encoder.layers.{i}.norm1",),
    "layers.{i}.linear1": ("encoder.layers.{i}.linear1",),
    "layers.{i}.linear2": ("encoder.layers.{i}.linear2",),
    "layers.{i}.norm2": ("encoder.layers.{i}.norm2",),
    "pooler": ("pooler.dense",),
    "head.classifier": ("classifier",),
    "head.qa_outputs": ("qa_outputs", "classifier"),
    "head.linear_start": ("linear_start",),
    "head.linear_end": ("linear_end",),
    "prediction.dense": ("cls.predictions.transform.dense",),
    "prediction.layer_norm": ("cls.predictions.transform.LayerNorm",),
    "prediction": ("cls.predictions",),
}
NOT_LINEAR = ("embeddings", "norm", "norm1", "norm2")
# How the paths of what is on top of the encoder begin; and the parts that a file may lack.
ON_TOP = ("head.", "prediction.")
OPTIONAL = ("head", "prediction", "pooler")
# Buffers that older files contain besides the weights.
IGNORED = ("embeddings.position_ids", "embeddings.token_type_ids")

CLASSES = {
    "ErnieMModel": "ErnieMModel",
    "ErnieMForSequenceClassification": "ErnieMForSequenceClassification",
    "ErnieMForMultipleChoice": "ErnieMForMultipleChoice",
    "ErnieMForTokenClassification": "ErnieMForTokenClassification",
    "ErnieMForQuestionAnswering": "ErnieMForQuestionAnswering",
    "ErnieMForInformationExtraction": "ErnieMForInformationExtraction",
    "UIEM": "ErnieMForInformationExtraction",
    "ErnieMForMaskedLM": "ErnieMForMaskedLM",
}


def file_name(path: str, format: str, prefix: str = "") -> str:
    """The name of a path in files of `format`, HUGGINGFACE or PADDLE; `prefix` precedes all but the head's names."""
    parts = path.split(".")
    layer = parts[1] if parts[0] == "layers" else ""
    if layer:
        parts[1] = "{i}"
    last = "." + parts.pop() if parts[-1] in ("weight", "bias") else ""
    names = TABLE[".".join(parts)]
    name = names[-1] if format == PADDLE else names[0]
    return ("" if parts[0] + "." in ON_TOP else prefix) + name.replace("{i}", layer) + last


def is_transposed(path: str, format: str) -> bool:
    """Whether files of `format` store this weight as (inputs, outputs)."""
    module, _, last = path.rpartition(".")
    return format == PADDLE and last == "weight" and not module.endswith(NOT_LINEAR)


def prefix_of(names: Iterable[str]) -> str:
    """`ernie_m.` if any stored name starts with it, else empty."""
    return PREFIX if any(name.startswith(PREFIX) for name in names) else ""


def format_of(names: Iterable[str]) -> str:
    """The format of stored names; HUGGINGFACE if ambiguous."""
    paddle = {TABLE[f"layers.{{i}}.{name}"][1].partition("{i}")[2] for name in ("q_proj", "k_proj", "v_proj")}
    for name in names:
        layer, _, rest = name.removeprefix(PREFIX).removeprefix("encoder.layers.").partition(".")
        if layer.isdigit() and f".{rest}".rpartition(".")[0] in paddle:
            return PADDLE
    return HUGGINGFACE


def orientation_of(stored: Mapping[str, tuple[int, ...]], format: str) -> str:
    """The format whose orientation these linear weights have, given all shapes by stored name.

    A file converted from Paddle's may keep its names, with or without transposing its linear weights. Those of
    attention are square, so the first feed-forward weight decides: its input size must equal the size of `norm1`.
    """
    pairs = [
        (shape, stored.get(name.removesuffix("linear1.weight") + "norm1.weight"))
        for name, shape in stored.items()
        if name.endswith(".linear1.weight")
    ]
    turned = [norm is not None and shape[1:] == norm != shape[:1] for shape, norm in pairs]
    return HUGGINGFACE if turned and all(turned) else format


def to_huggingface(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays by path as a `state_dict` with Hugging Face's names; not copied."""
    prefix = PREFIX if any(path.startswith(ON_TOP) for path in arrays) else ""
    return {file_name(path, HUGGINGFACE, prefix): array for path, array in arrays.items()}


def from_huggingface(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The inverse of `to_huggingface`. Raises ValueError for a name that is not a weight of the model."""
    patterns = {names[0]: path for path, names in TABLE.items()}
    found: dict[str, Array] = {}
    for name, array in arrays.items():
        parts = name.removeprefix(PREFIX).split(".")
        layer = parts[2] if parts[:2] == ["encoder", "layers"] and len(parts) > 2 and parts[2].isdigit() else ""
        if layer:
            parts[2] = "{i}"
        plain = ".".join(parts)
        module, _, last = plain.rpartition(".")
        if plain in patterns and last == "weight":  # an embedding: its entry in the table includes `.weight`
            path = patterns[plain]
        elif module in patterns and not module.endswith(".weight") and last in ("weight", "bias"):
            path = f"{patterns[module]}.{last}"
        elif plain in IGNORED:
            continue
        else:
            raise ValueError(f"{name}: not the name of a weight in a Hugging Face checkpoint of ERNIE-M")
        found[path.replace("{i}", layer)] = array
    return found


def architecture_of(config: ErnieMConfig | None, names: Iterable[str]) -> str:
    """Which of the classes a checkpoint was saved from: from its configuration, else inferred from its names.

    A classifier with a pooler is taken as sequence classification, although multiple choice looks the same.
    """
    for name in (config.architectures or ()) if config is not None else ():
        if name in CLASSES:
            return CLASSES[name]
    modules = {name.removeprefix(PREFIX).rpartition(".")[0] for name in names}
    if "cls.predictions" in modules:
        return "ErnieMForMaskedLM"
    if "linear_start" in modules:
        return "ErnieMForInformationExtraction"
    if "qa_outputs" in modules:
        return "ErnieMForQuestionAnswering"
    if "classifier" in modules:
        pooled = "pooler.dense" in modules
        return "ErnieMForSequenceClassification" if pooled else "ErnieMForTokenClassification"
    return "ErnieMModel"


def unused(name: str, format: str) -> bool:
    """Whether a stored name is known but optional: a weight of a head or of the pooler, or a buffer."""
    plain = name.removeprefix(PREFIX)
    modules = {file_name(path, format) for path in TABLE if path.startswith(OPTIONAL)}
    module, _, last = plain.rpartition(".")
    return plain in IGNORED or (module in modules and last in ("weight", "bias"))
