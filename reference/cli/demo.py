"""`ernie-m demo`: take sentences in several languages from text to vectors, and compare the vectors.

Computed in float64, so that the printed digits are the same on every machine.
"""

from __future__ import annotations

import argparse
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from ernie_m.tokenizer import ErnieMTokenizer

from .. import demo
from ..array import Array
from ..gradients import value_and_gradients
from ..heads import ErnieMForSequenceClassification
from ..model import ErnieMModel
from ..parameters import Parameters, flatten, initialise, unflatten
from ..trace import Trace, trace
from .command import add_command
from .input import from_arguments
from .model import CHECKPOINT, checkpoint_directory
from .numbers import directory_name
from .table import entry_table, escaped, number, table, width

INDENT = "   "
COLUMNS = 120
# A zero-width mark that returns a terminal to left-to-right order.
LEFT_TO_RIGHT = "\u200e"
# The entries shown for each layer; `ernie-m trace` shows the others.
LAYER_ENTRIES = ("self_attn.self_attn.probs", "norm2")

DESCRIPTION = "Show every step from sentences to pieces, ids, layers and vectors, their cosines, and a training step."
EPILOG = """\
examples:
  ernie-m demo
  ernie-m demo "The cat sleeps." "Die Katze schläft."
  ernie-m demo --model DIR "The cat sleeps." "Die Katze schläft."
""".rstrip()


def add(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = add_command(commands, "demo", "show every step from text to vectors", DESCRIPTION, EPILOG, run)
    parser.add_argument("texts", metavar="SENTENCE", nargs="*", help="sentences to use instead of the built-in ones")
    model = f"{CHECKPOINT} (default: the one in the package)"
    parser.add_argument("--model", metavar="DIR", type=directory_name, help=model)


def run(arguments: argparse.Namespace) -> int:
    """Print the demo."""
    directory = demo.directory() if arguments.model is None else checkpoint_directory(arguments.model)
    sentences = [item.text for item in from_arguments(arguments.texts)] or demo.sentences()
    model = ErnieMModel.from_pretrained(directory, dtype=np.float64)
    tokenizer = ErnieMTokenizer.from_pretrained(directory)
    batch = tokenizer(
        sentences,
        padding=True,
        truncation=True,
        max_length=model.config.max_length,
        return_tensors="np",
        return_offsets_mapping=True,
    )
    mask = batch["attention_mask"]
    with trace() as found:
        out = model(batch["input_ids"], attention_mask=mask, output_hidden_states=True)

    print(*introduction(model, arguments.model), sep="\n")
    print("\nTokens: piece, id, and span in the sentence (start:end)")
    for i, sentence in enumerate(sentences):
        ids, spans = (batch[name][i][mask[i] == 1] for name in ("input_ids", "offset_mapping"))
        print(f"{i + 1}  {escaped(sentence)}")
        print(*token_lines(tokenizer.convert_ids_to_tokens(ids.tolist()), ids.tolist(), spans.tolist()), sep="\n")
    print(
        f"\nLayers, computed on the batch's {mask.sum()} tokens; {mask.size - mask.sum()} padding positions are skipped"
    )
    print(*layer_lines(found, model.config.num_hidden_layers), sep="\n")
    print("\nCosines between the sentence vectors: each is the mean over its sentence's tokens")
    if arguments.model is None:
        layer, vectors, note = centred_means(out.hidden_states, mask, arguments.texts)
        print(f"after layer {layer}, less {note}.")
    else:
        vectors = out.last_hidden_state.sum(axis=1) / mask.sum(axis=1)[:, None]
    print(*cosine_lines(sentences, vectors), sep="\n")
    if arguments.model is None:
        if not arguments.texts:
            print(*nearest_lines(vectors), sep="\n")
        print("\nA training step: a new head with two labels, and labels 0, 1, 0, ... for the sentences")
        print(*training_lines(model, batch["input_ids"], mask), sep="\n")
    return 0


def introduction(model: ErnieMModel, directory: str | None) -> list[str]:
    """Describe the model; of the one in the package, what it was trained on and what it cannot do."""
    config = model.config
    size = (
        f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, {config.num_attention_heads} heads, "
        f"vocabulary {config.vocab_size:,}: {model.num_parameters():,} parameters"
    )
    if directory is not None:
        return [f"The checkpoint in {directory}: {size}."]
    return [
        f"The checkpoint in the package: {size}.",
        "It was trained to predict sentences from their translations, on help pages and menus of an office suite and a",
        "browser in eight languages. It matches sentences about software; it knows little of anything else.",
    ]


def token_lines(tokens: Sequence[str], ids: Sequence[int], spans: Sequence[Sequence[int]]) -> list[str]:
    """Three aligned lines: tokens, ids, and spans [start, end) in the sentence. A long sentence is wrapped."""
    columns = []
    for token, token_id, (start, end) in zip(tokens, ids, spans, strict=True):
        columns.append((token_cell(token), str(token_id), f"{start}:{end}" if end > start else ""))
    lines: list[str] = []
    while columns:
        taken, used = 0, len(INDENT)
        while taken < len(columns) and (taken == 0 or used + max(map(width, columns[taken])) <= COLUMNS):
            used += max(map(width, columns[taken])) + 1
            taken += 1
        rows = list(zip(*columns[:taken], strict=True))
        lines += [INDENT + line for line in table(rows, gap=" ")]
        columns = columns[taken:]
    return lines


def token_cell(token: str) -> str:
    """The token as a cell; a mark after right-to-left text keeps it in its column on a terminal."""
    right_to_left = any(unicodedata.bidirectional(character) in ("R", "AL") for character in token)
    return token + LEFT_TO_RIGHT if right_to_left else token


def layer_lines(found: Trace, layers: int) -> list[str]:
    """Shape and statistics of the embeddings, of LAYER_ENTRIES in each layer, and of the pooler."""
    inner = [f"encoder.layers.{i}.{name}" for i in range(layers) for name in LAYER_ENTRIES]
    names = ["embeddings.layer_norm", *inner, "pooler.activation"]
    return entry_table([found[name] for name in names], digits=3)


def centred_means(
    states: Sequence[Array], mask: Array, given: Sequence[str]
) -> tuple[int, Array, str]:  # (L + 1) x (B, S, E), (B, S) -> ..., (B, E), ...
    """The layer, the sentence vectors there, centred, and what was subtracted; the language of `given` is unknown."""
    layer, means = demo.retrieval()
    vectors = states[layer].sum(axis=1) / mask.sum(axis=1)[:, None]
    if given:
        return layer, vectors - np.mean(list(means.values()), axis=0), "the mean vector of all languages"
    own = np.array([means[language] for language in demo.languages()])
    return layer, vectors - own, "the mean vector of its language"


def nearest_lines(vectors: Array) -> list[str]:  # (B, E)
    """Which sentence each one is nearest to: sentence i and sentence i + B/2 are translations."""
    B = len(vectors)
    nearest = (cosines(vectors) - 2 * np.eye(B)).argmax(axis=1) + 1
    right = int((nearest == (np.arange(B) + B // 2) % B + 1).sum())
    found = ", ".join(f"{i} and {j}" for i, j in enumerate(nearest, 1) if i < j and nearest[j - 1] == i)
    return [f"Nearest to each other: {found}. For {right} of {B} sentences the nearest is the translation."]


def cosines(vectors: Array) -> Array:  # (B, E) -> (B, B)
    """The cosine of each pair of vectors."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Array = unit @ unit.T
    return found


def cosine_lines(sentences: Sequence[str], vectors: Array) -> list[str]:  # B, (B, E) -> a table
    """The cosine of each pair of vectors, to two decimals."""
    values = cosines(vectors)
    columns = range(1, len(sentences) + 1)
    rows = [("", *map(str, columns), "")]
    for i, sentence in enumerate(sentences):
        rows.append((str(i + 1), *(number(value, 2) for value in values[i]), sentence))
    return table(rows, right=(0, *columns))


def training_lines(model: ErnieMModel, input_ids: Array, mask: Array) -> list[str]:
    """The loss before and after a step against the gradients, and these checked along their own direction."""
    cls, config = ErnieMForSequenceClassification, model.config.replace(num_labels=2, classifier_dropout=0.0)
    labels = np.arange(len(input_ids)) % 2
    head = {"head.classifier.weight": (2, config.hidden_size), "head.classifier.bias": (2,)}
    arrays = flatten(model.parameters) | initialise(head, config, 0, model.dtype)

    def loss(parameters: Parameters) -> float:
        return float(cls(config, parameters)(input_ids, attention_mask=mask, labels=labels)["loss"])

    output, gradients = value_and_gradients(cls(config, unflatten(arrays)), input_ids, mask, labels=labels)
    slopes = flatten(gradients)
    norm = math.sqrt(sum(float(np.square(g).sum()) for g in slopes.values()))

    def moved(distance: float) -> Parameters:
        return unflatten({path: array - distance / norm * slopes[path] for path, array in arrays.items()})

    h = 1e-5
    differences = (loss(moved(-h)) - loss(moved(h))) / (2 * h)
    rows = [
        ("loss", number(float(output["loss"]), 4)),
        ("length of the gradient, by backpropagation", number(norm, 6)),
        ("the same, by central differences of the loss", number(differences, 6)),
        ("loss after a step of 0.1 against the gradient", number(loss(moved(0.1)), 4)),
    ]
    return table(rows, right=(1,))
