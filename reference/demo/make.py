"""Make this folder from finished runs, after `make corpus pretrain heads`:

    python reference/demo/make.py runs/pretrain runs/corpus runs/heads

What is in it:

    model.safetensors          the run's best model in float16, with an untrained pooler, which encoders have
    config.json                its configuration
    sentencepiece.bpe.model, vocab.txt
    retrieval.json             the layer to take vectors from, and each language's mean vector there
    log.jsonl, figures.json    the run's log, and what the model and heads on it reach on the test split
    README.md                  the model card, with these figures
    sentences.tsv              eight sentences of the test split, with the languages that they are in

`recipe.json` is what `make pretrain` trains by.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ernie_m.reference import ErnieMForMaskedLM, ErnieMModel
from ernie_m.reference.checkpoint import save_checkpoint
from ernie_m.reference.parameters import flatten
from ernie_m.reference.training.evaluation import Result, evaluate
from ernie_m.tokenizer.new_files import replacing

HERE = Path(__file__).resolve().parent
HUB, ITEMS = "en", 500
COPIED = ("sentencepiece.bpe.model", "vocab.txt", "retrieval.json")
# Four sentences of the test split, by key, and the two languages in which each is shown.
SENTENCES = (
    ("libreoffice:scalc/01/02170000#par_id3154943", ("en", "zh")),
    ("libreoffice:scalc/main0203#par_id3149119", ("de", "ja")),
    ("libreoffice:scalc/guide/database_sort#par_idN10645", ("fr", "ru")),
    ("libreoffice:scalc/01/04050000#par_id3159267", ("es", "el")),
)
HEADER = """\
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0. If a copy of the MPL was not
# distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.
# From LibreOffice's help.
"""


# Heads that `make heads` trains, the figure that counts, and what they are for.
HEADS = {
    "language": ("accuracy", "language of a text"),
    "module": ("accuracy", "module of a help page"),
    "tags": ("f1", "tags of menus, inputs and literals"),
    "extraction": ("f1", "extraction of the same"),
}


def main(run: Path, corpus: Path, heads: Path) -> None:
    """Write the files, and print their sizes."""
    write_model(run / "model")
    with replacing(*(HERE / name for name in (*COPIED, "log.jsonl", "sentences.tsv"))) as files:
        for file, source in zip(files, (*(run / "model" / name for name in COPIED), run / "log.jsonl"), strict=False):
            file.write(source.read_bytes())
        files[-1].write((HEADER + sentences(corpus / "test.jsonl")).encode())
    results = evaluate(HERE, corpus / "test.jsonl", HUB, ITEMS)
    reached = {name: read_head(heads, name) for name in HEADS}
    figures = {"items": ITEMS, "pairs": {name: asdict(result) for name, result in results.items()}, "heads": reached}
    with replacing(HERE / "figures.json", HERE / "README.md") as (data, card):
        data.write((json.dumps(figures, indent=1) + "\n").encode())
        card.write(model_card(results, reached, json.loads((corpus / "report.json").read_text("utf-8"))).encode())
    for path in sorted(HERE.iterdir()):
        if path.is_file():
            print(f"{path.name:24} {path.stat().st_size:9,} bytes")


def write_model(directory: Path) -> None:
    """The weights in float16; the pooler, which nothing trained, from seed 0."""
    model = ErnieMForMaskedLM.from_pretrained(directory)
    new = flatten(ErnieMModel.from_config(model.config, seed=0).parameters)
    arrays = flatten(model.parameters) | {name: x for name, x in new.items() if name.startswith("pooler")}
    half = {name: x.astype(np.float16) for name, x in arrays.items()}
    save_checkpoint(HERE, model.config, half, "ErnieMForMaskedLM", overwrite=True)


def sentences(path: Path) -> str:
    """The chosen sentences as lines of language and text: first one language of each pair, then the other."""
    rows = {row["_key"]: row for row in map(json.loads, path.read_text("utf-8").splitlines())}
    chosen = [(rows[key], languages[i]) for i in range(2) for key, languages in SENTENCES]
    return "".join(f"{language}\t{row[language]}\n" for row, language in chosen)


def read_head(heads: Path, name: str) -> dict[str, Any]:
    """What a head reaches on the test split and in each language of it, if records have one."""
    found = json.loads((heads / f"{name}.json").read_text("utf-8"))
    figure = HEADS[name][0]
    languages = {language: round(about[figure], 4) for language, about in found.get("languages", {}).items()}
    return {"figure": figure, "records": found["records"], "all": round(found[figure], 4), "languages": languages}


def head_rows(reached: dict[str, dict[str, Any]], languages: list[str]) -> str:
    """The rows of the table of heads."""
    rows = ""
    for name, about in reached.items():
        of = about["languages"]
        cells = [f"{about['all']:.2f}", *(f"{of[language]:.2f}" if of else "" for language in languages)]
        rows += f"| {HEADS[name][1]} | {about['figure'].replace('f1', 'F1 of spans')} | {' | '.join(cells)} |\n"
    return rows


def model_card(results: dict[str, Result], reached: dict[str, dict[str, Any]], report: dict[str, Any]) -> str:
    """The text of README.md."""
    rows = "".join(
        f"| {name} | {r.model:.3f} | {r.raw:.3f} | {r.tfidf:.3f} | {r.margin:+.3f} ({r.low:+.3f} to {r.high:+.3f}) |\n"
        for name, r in sorted(results.items())
    )
    last = [row for row in map(json.loads, (HERE / "log.jsonl").read_text("utf-8").splitlines()) if "norm" in row][-1]
    recipe = json.loads((HERE / "recipe.json").read_text("utf-8"))
    kept = json.loads((HERE / "retrieval.json").read_text("utf-8"))
    model = ErnieMForMaskedLM.from_pretrained(HERE)
    licences = ", ".join(sorted({about["licence"] for about in report["packages"].values()}))
    return CARD.format(
        parameters=model.num_parameters(),
        encoder=ErnieMModel.from_pretrained(HERE).num_parameters(),
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        heads=model.config.num_attention_heads,
        vocabulary=model.config.vocab_size,
        layer=kept["layer"],
        languages=", ".join(sorted(kept["language_means"])),
        segments=report["segments"]["train"],
        steps=last["step"],
        planned=recipe["settings"]["steps"],
        tokens=last["tokens"] / 1e6,
        hours=last["seconds"] / 3600,
        items=ITEMS,
        mean=float(np.mean([r.model for r in results.values()])),
        raw=float(np.mean([r.raw for r in results.values()])),
        rows=rows,
        licences=licences,
        names=" | ".join(sorted(kept["language_means"])),
        lines="---:|" * len(kept["language_means"]),
        head_rows=head_rows(reached, sorted(kept["language_means"])),
    )


CARD = """\
# The checkpoint that ships: a small ERNIE-M that has learned

A masked language model of {parameters:,} parameters in float16: {layers} layers, {width} wide, {heads} heads,
{vocabulary:,} tokens. The file also has a pooler; `ErnieMModel` is the encoder with the pooler and without the
head of the language model, {encoder:,} parameters. The model reads {languages}, and finds translations
of sentences about office programs and browsers. `make.py` wrote this page.

## What it was trained on

{segments:,} segments of LibreOffice's help, Firefox's user interface, Unicode's emoji names and the Universal
Declaration of Human Rights, aligned by key (`make corpus`; versions and hashes in `../training/corpus/packages.json`).
A segment is a sentence or a menu item in all the languages that have it. The corpus was split by page into training,
development and test splits, and near-duplicates were removed; the number is that of the training split.

## How

CAMLM with one side masked whole: a sentence is predicted from its translation alone. One side is always English.
{steps:,} of {planned:,} steps, {tokens:.1f} million tokens, {hours:.1f} hours on a CPU (`make pretrain`: `recipe.json`,
`log.jsonl`). Up to step 16,000 validation searched the first pairs of the development split, afterwards pairs from all
of it: `acc@1` in the log cannot be compared across that step.

## What it reaches

acc@1 on the test split, on which nothing was tuned: how often a segment's translation is the nearest of {items}, the
mean of both directions. Segments have at least four English words. Vectors are means over tokens after layer {layer},
which was chosen on the development split; "centred" subtracts the mean vector of the text's language in that split.
tf-idf searches by shared pieces. The margin is the difference from tf-idf, with a 95 % interval over segments. The
demo's eight sentences are from the test split too, chosen by hand because the model finds them.

| pair | centred | not centred | tf-idf | margin |
|---|---:|---:|---:|---:|
{rows}
Mean: {mean:.3f} centred, {raw:.3f} not centred.

## Heads on it

`make heads` fine-tunes four, each in about two minutes on one core. The language head is trained on texts in all
languages. The other heads are trained on English texts alone: their figures in other languages show how much carries
over. On the test split, one run each:

| head | figure | all | {names} |
|---|---|---:|{lines}
{head_rows}
Their settings were chosen on earlier models, partly by figures on the test split, so these are not clean measurements.
A head that always names the most frequent module is right for 0.31 of the texts. So for modules little carries over to
other languages, and for tags hardly anything. There is no trained head for question answering, multiple choice or
entailment.

## What it cannot do

- Everyday language: it knows the words of help pages and menus. "The cat is sleeping on the sofa." tells it little.
- Pairs without English were not trained on.
- The pooler is untrained; take means of tokens after the layer that `retrieval.json` records, or train a head.
- Without a language's mean vector subtracted, retrieval is worse: see the table.
- It is far too small to know facts, and repeats what help pages say.

## Licences

The weights are under the project's licence. `sentences.tsv` is under the MPL 2.0. The texts that the model was trained
on, which are not here: {licences}; see NOTICE.
"""


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python reference/demo/make.py RUN CORPUS HEADS")
    main(*map(Path, sys.argv[1:]))
