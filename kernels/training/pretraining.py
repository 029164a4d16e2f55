"""Pretraining as a task of the loop: batches from tokenised texts, validated by retrieval and by the loss."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ernie_m.reference.array import Array
from ernie_m.reference.objectives import Example, Vocabulary, collate, pseudo_tokens
from ernie_m.reference.training.mixture import Mixture
from ernie_m.reference.training.retrieval import accuracies
from ernie_m.tokenizer import ErnieMTokenizer
from ernie_m.tokenizer.new_files import replacing

from . import saving
from .loop import Batch
from .vectors import mean_vectors

RETRIEVAL, LIKELIHOOD = "acc@1", "log-likelihood"
# Rows of logits that exist at once where pseudo-tokens are predicted.
ROWS = 1024


def vocabulary_of(tokenizer: ErnieMTokenizer) -> Vocabulary:
    """The special tokens and the size of a tokenizer's vocabulary."""
    t = tokenizer
    return Vocabulary(len(t), t.mask_token_id, t.cls_token_id, t.pad_token_id, t.sep_token_id, t.unk_token_id)


@dataclass
class Pretraining:
    """Learns what `mixture` draws; validates on `held_out`, a mixture of texts that are not trained on.

    items: how many translations of each pair are searched. directory: where the best model is kept.
    """

    mixture: Mixture
    tokenizer: ErnieMTokenizer
    directory: Path
    held_out: Mixture | None = None
    items: int = 500

    @property
    def decides(self) -> str:
        """Retrieval if there are translations, else the likelihood of masked words."""
        if self.held_out is None:
            return ""
        return RETRIEVAL if self._pairs else LIKELIHOOD

    def batch(self, step: int, i: int, model: Any) -> Batch:
        """Batch i of a step, of the step's objective."""
        examples = self.mixture.batch(step, i, lambda given: predict(model, given, self.mixture.vocabulary))
        return _batch(examples, self.mixture, self.mixture.objective(step))

    def evaluate(self, model: Any) -> dict[str, Any]:
        """acc@1, centred by language, of the best layer; and the mean log-likelihood of masked words."""
        if self.held_out is None:
            return {}
        figures: dict[str, Any] = {LIKELIHOOD: -self._loss(model, self.held_out)}
        if self._pairs:
            base, words = model.base_model, self.mixture.vocabulary
            vectors = {name: mean_vectors(base, texts, words) for name, texts in self._texts.items()}
            tables = [self._table(vectors, layer) for layer in range(model.config.num_hidden_layers + 1)]
            means = [float(np.mean(list(table.values()))) for table in tables]
            best = int(np.argmax(means))
            figures |= {RETRIEVAL: means[best], "layer": best, "layers": means, "pairs": tables[best]}
            # What centring subtracts; it goes with the model that is kept.
            self._means = {name: x[:, best].mean(axis=0) for name, x in vectors.items()}
        return figures

    def keep(self, model: Any, state: dict[str, Tensor], figures: dict[str, Any]) -> None:
        """Write the model, its tokenizer, and what retrieval with it needs."""
        target = self.directory / saving.MODEL
        model.save_pretrained(target, overwrite=True, state_dict=state)
        self.tokenizer.save_pretrained(target)
        if "layer" in figures:
            means = {name: [round(float(value), 6) for value in mean] for name, mean in self._means.items()}
            with replacing(target / "retrieval.json") as (file,):
                file.write((json.dumps({"layer": figures["layer"], "language_means": means}) + "\n").encode())

    @cached_property
    def _pairs(self) -> dict[str, Array]:
        """The rows of each pair of languages that are searched, from all parts of the files."""
        held_out = self.held_out
        assert held_out is not None
        hub = held_out.pairs_with
        named = {
            name: rows[np.linspace(0, len(rows) - 1, min(self.items, len(rows))).astype(int)]
            for name, rows in held_out.shards.pairs.items()
        }
        return {name: rows for name, rows in named.items() if hub is None or hub in name.split("+")}

    @cached_property
    def _texts(self) -> dict[str, list[Array]]:
        """The texts of each language that some pair needs, each once."""
        assert self.held_out is not None
        return {name: [self.held_out.shards.text(int(t)) for t in ids] for name, ids in self._ids.items()}

    @cached_property
    def _ids(self) -> dict[str, Array]:
        found: dict[str, list[Array]] = {}
        for pair, rows in self._pairs.items():
            for column, name in enumerate(pair.split("+")):
                found.setdefault(name, []).append(np.asarray(rows)[:, column])
        return {name: np.unique(np.concatenate(ids)) for name, ids in sorted(found.items())}

    def _table(self, vectors: Mapping[str, Array], layer: int) -> dict[str, float]:
        """acc@1 of each pair at a layer."""
        table = {}
        for pair, rows in self._pairs.items():
            sides = {
                name: vectors[name][np.searchsorted(self._ids[name], np.asarray(rows)[:, column]), layer]
                for column, name in enumerate(pair.split("+"))
            }
            (table[pair],) = accuracies(sides).values()
        return table

    def _loss(self, model: Any, held_out: Mixture) -> float:
        """The mean loss of a few batches of each objective, always the same."""
        sums = [0.0, 0.0]
        for step in range(len(held_out.objectives)):
            for i in range(held_out.per_step):
                examples = held_out.batch(step, i, lambda given: predict(model, given, held_out.vocabulary))
                batch = _batch(examples, held_out, "")
                arguments = {name: torch.from_numpy(x).to(model.device) for name, x in batch.arguments.items()}
                sums[0] += float(model(**arguments).loss) * batch.weight
                sums[1] += batch.weight
        return sums[0] / sums[1]


def _batch(examples: Sequence[Example], mixture: Mixture, name: str) -> Batch:
    arguments = collate(examples, mixture.vocabulary)
    weights = arguments["label_weights"] = arguments["label_weights"].astype(np.float32)
    return Batch(arguments, float(weights.sum(dtype=np.float64)), name, sum(len(e.input_ids) for e in examples))


def predict(model: Any, examples: Sequence[Example], vocabulary: Vocabulary) -> list[Array]:
    """The most probable pseudo-token for each placeholder of each example, without dropout and without gradients."""
    found: list[Array] = []
    training = model.training
    model.eval()
    some: list[Example] = []
    for number, e in enumerate(examples, 1):
        some.append(e)
        full = sum(len(x.input_ids) for x in some) >= ROWS
        if not full and number < len(examples):
            continue
        given = collate(some, vocabulary)
        names = ("input_ids", "attention_mask", "position_ids")
        with torch.no_grad():
            logits = model(**{name: torch.from_numpy(given[name]).to(model.device) for name in names}).logits
        for row, x in zip(logits, some, strict=True):
            places = np.flatnonzero(x.sides == 1)
            found.append(pseudo_tokens(row[places].float().cpu().numpy(), vocabulary))
        some = []
    model.train(training)
    return found
