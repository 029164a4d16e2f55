"""Small corpora for the tests of training, and a small recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ernie_m.reference import demo
from ernie_m.reference.objectives import Vocabulary
from ernie_m.tokenizer import ErnieMTokenizer

# Words that mean the same, line by line.
WORDS = {
    "en": [
        "the",
        "cat",
        "dog",
        "house",
        "tree",
        "sees",
        "likes",
        "finds",
        "big",
        "small",
        "old",
        "new",
        "and",
        "water",
        "bread",
    ],
    "de": [
        "die",
        "Katze",
        "Hund",
        "Haus",
        "Baum",
        "sieht",
        "mag",
        "findet",
        "gross",
        "klein",
        "alt",
        "neu",
        "und",
        "Wasser",
        "Brot",
    ],
    "ru": [
        "это",
        "кошка",
        "собака",
        "дом",
        "дерево",
        "видит",
        "любит",
        "находит",
        "большой",
        "маленький",
        "старый",
        "новый",
        "и",
        "вода",
        "хлеб",
    ],
}
RECIPE: dict[str, Any] = {
    "model": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 66,
    },
    "objectives": ["camlm", "mmlm", "tlm"],
    "arguments": {"camlm": {"masked_sides": "one", "ratio": 0.5}},
    "batch_tokens": 96,
    "longest": 24,
    "settings": {"steps": 6, "rate": 1e-3, "warmup": 2, "evaluate_every": 3, "save_every": 2, "log_every": 2},
}


def tokenizer() -> ErnieMTokenizer:
    """The tokenizer of the checkpoint that ships."""
    return ErnieMTokenizer.from_pretrained(demo.directory())


def vocabulary(t: ErnieMTokenizer) -> Vocabulary:
    """What the objectives need to know of a tokenizer."""
    return Vocabulary(len(t), t.mask_token_id, t.cls_token_id, t.pad_token_id, t.sep_token_id, t.unk_token_id)


def segments(count: int, seed: int = 0, languages: tuple[str, ...] = ("en", "de", "ru")) -> list[dict[str, str]]:
    """Made-up sentences and their translations, word by word; some lack a language."""
    rng, found = np.random.default_rng(seed), []
    for i in range(count):
        words = rng.integers(0, len(WORDS["en"]), rng.integers(1, 9))
        texts = {name: " ".join(WORDS[name][w] for w in words) for name in languages}
        if i % 5 == 4 and len(texts) > 1:
            del texts[languages[i % len(languages)]]
        found.append(texts)
    return found


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def write_recipe(path: Path, **changes: Any) -> Path:
    """The recipe, with other settings where they are named there, else with other entries."""
    recipe = {**RECIPE, "settings": dict(RECIPE["settings"])}
    for name, value in changes.items():
        if name in RECIPE:
            recipe[name] = value
        else:
            recipe["settings"][name] = value
    path.write_text(json.dumps(recipe), "utf-8")
    return path
