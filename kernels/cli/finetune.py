"""`python -m ernie_m.kernels finetune`: train a head, and the model below it, on labelled texts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ernie_m.reference.cli.model import CHECKPOINT, checkpoint_directory
from ernie_m.reference.cli.numbers import directory_name, positive, rate, some_path
from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.parameters import initialise
from ernie_m.reference.training.labelled import read_labelled
from ernie_m.reference.training.rows import Row
from ernie_m.reference.training.shards import fingerprint, identity
from ernie_m.tokenizer import ErnieMTokenizer
from ernie_m.tokenizer.layout import SPECIAL_PAIR

from ..training import JOBS, FineTuning, Group, Settings, group, saving, train
from ..training.finetuning import predict
from ..training.jobs import Job
from .runs import changed, kept, prepared, stopping

DESCRIPTION = """\
Train a head, and the model below it, on labelled texts. Files (UTF-8, all texts of a file in one of these forms):

  classify  .jsonl {"text": "A cat.", "label": "animal"}, perhaps with "pair"; .csv, .tsv with a header text,label
            (a .csv may quote cells, a .tsv has no quotes)
  tag       .conll, .txt: a token on each line, its tag (O, B-name, I-name) last, an empty line after a sentence;
            .jsonl {"text": "Ada is here.", "spans": [{"start": 0, "end": 3, "label": "name"}]}
  answer    .json as SQuAD 1.1 or 2.0; .jsonl {"question", "context", "answers": {"text": [], "answer_start": []}}
  choose    .jsonl {"prompt": "A cat", "choices": ["barks.", "purrs."], "label": 1}
  extract   .jsonl {"content", "prompt", "result_list": [{"text", "start", "end"}]} as UIE's; or as for tag, where each
            label is a prompt
"""
EPILOG = """\
By default, as ERNIE-M's recipes do, the learning rate rises for a tenth of the steps, and falls from each layer to the
one below to 0.8 of it. --set changes any of kernels/training/settings.py: layer_decay=1, warmup=100, patience=3.
OUT holds checkpoint.pt, log.jsonl, log.png if matplotlib is installed, and in model/, for this package and for
transformers, the model that is best on --validation (accuracy; F1 of spans or of answers), without it the last one.
A text longer than --longest is cut for classify, choose and tag (spans behind the cut count as missed, although
ernie-m tag reads whole texts), and read in windows for answer and extract.
SIGTERM and Ctrl-C finish a step and save; --resume goes on exactly there. For each --test file a line of JSON is
printed. With several processes: torchrun --nproc-per-node 2 -m ernie_m.kernels finetune ..."""
# ERNIE-M's recipes.
LAYER_DECAY, WARMUP = 0.8, 0.1
EPOCHS, RATE = 5, 5e-5
LONGEST = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add("task", metavar="TASK", choices=JOBS, help=f"one of {', '.join(JOBS)}")
    begin = f"begin with this checkpoint and its tokenizer: {CHECKPOINT}"
    add("--model", metavar="DIR", type=directory_name, required=True, help=begin)
    add("--data", metavar="FILE", type=some_path, nargs="+", required=True, help="texts to train on")
    add("--validation", metavar="FILE", type=some_path, nargs="+", default=[], help="texts to choose the best model by")
    add("--test", metavar="FILE", type=some_path, nargs="+", default=[], help="texts to measure the best model on")
    add("--out", metavar="OUT", type=some_path, required=True, help="directory of the run")
    add("--epochs", metavar="N", type=positive, help=f"how often each text is seen ({EPOCHS})")
    add("--batch", metavar="N", type=positive, default=32, help="texts, or windows of texts, of a batch (32)")
    add("--rate", metavar="RATE", type=rate, help=f"the highest learning rate ({RATE})")
    add("--set", metavar="NAME=VALUE", action="append", default=[], help="another setting, see below")
    add("--longest", metavar="N", type=positive, help=f"most tokens of a row ({LONGEST}, or what the model can read)")
    add("--resume", action="store_true", help="go on with the run in OUT, if there is one")
    add("--device", choices=["cpu", "cuda"], help="by default a GPU if there is one")


def run(arguments: argparse.Namespace) -> int:
    """Train and measure, and return the exit code."""
    task, out, changes = arguments.task, arguments.out, changed(arguments.set)
    for name, setting in (("epochs", "steps"), ("rate", "rate")):
        if getattr(arguments, name) is not None and setting in changes:
            raise ValueError(f"--{name}: expected no --set {setting} with it, as it would have no effect")
    data, held_out = (read_all(task, files) for files in (arguments.data, arguments.validation))
    tests = {path: read_labelled(task, path) for path in arguments.test}
    directory = checkpoint_directory(arguments.model)
    if directory.resolve() == (out / saving.MODEL).resolve():
        raise ValueError(f"--model: expected another directory than {out / saving.MODEL}, which this run would replace")
    tokenizer = ErnieMTokenizer.from_pretrained(directory)
    config = ErnieMConfig.from_pretrained(directory)
    job = JOBS[task](tokenizer, row_length(arguments.longest, config), data)
    job.keep_order(list(config.id2label.values()))
    with group(arguments.device) as processes, prepared(out, arguments.resume, processes) as resumed:
        rows = tokenised(job, data, "to learn from", processes)
        validation = tokenised(job, held_out, "to validate on", processes)
        test_rows = {path: tokenised(job, records, f"of {path}", processes) for path, records in tests.items()}
        rows = job.learnable(rows)
        settings = settings_of(arguments, changes, len(rows), processes)
        per_step = settings.accumulate * processes.size
        learning = FineTuning(job, rows, arguments.batch, out, per_step, settings.seed, held_out, validation)
        model = start(directory, job, settings, rows)
        made_of = {
            "task": task,
            "model": model.config.to_dict(),
            "settings": settings.as_dict(),
            "files": [[identity(path) for path in files] for files in (arguments.data, arguments.validation)],
            "labels": list(job.labels),
            "longest": job.encoder.longest,
            "batch": arguments.batch,
            "tokenizer": fingerprint(tokenizer),
            "batches of a step": per_step,
        }
        with stopping(processes):
            train(model, learning, settings, out, processes, made_of, resumed)
        if processes.leads:
            print(f"model and tokenizer: {kept(out)}", file=sys.stderr)
            measure(job, tests, test_rows, kept(out), processes)
        processes.wait()
    return 0


def read_all(task: str, files: Sequence[Path]) -> list[Any]:
    """The records of some files."""
    return [record for path in files for record in read_labelled(task, path)]


def row_length(wanted: int | None, config: ErnieMConfig) -> int:
    """How many tokens a row may have. Raises ValueError for too few for a pair, or more than the model can read."""
    least = 2 * SPECIAL_PAIR + 1
    if wanted is not None and not least <= wanted <= config.max_length:
        raise ValueError(f"--longest: expected {least} to {config.max_length} (what the model reads), got {wanted}")
    return min(LONGEST, config.max_length) if wanted is None else wanted


def tokenised(job: Job, records: Sequence[Any], purpose: str, processes: Group) -> list[Any]:
    """The rows of some records; the first process tells what did not fit."""
    job.encoder.notes.clear()
    rows = job.rows(records) if records else []
    if processes.leads and records:
        notes = "".join(f"; {count:,} {what}" for what, count in sorted(job.encoder.notes.items()) if count)
        print(f"records {purpose}: {len(records):,}, in rows: {len(rows):,}{notes}", file=sys.stderr)
    return rows


def settings_of(arguments: argparse.Namespace, changes: dict[str, Any], rows: int, processes: Group) -> Settings:
    """The settings of the command line, with an epoch between evaluations, and ERNIE-M's warm-up and decay."""
    batches = changes.get("accumulate", 1) * processes.size
    epoch = max(1, -(-rows // (arguments.batch * batches)))
    steps = changes.get("steps", (arguments.epochs or EPOCHS) * epoch)
    chosen = {
        "steps": steps,
        "rate": arguments.rate or RATE,
        "layer_decay": LAYER_DECAY,
        "warmup": round(WARMUP * steps),
        "evaluate_every": epoch,
        "save_every": epoch,
        "log_every": 10,
    }
    return Settings.from_dict(chosen | changes)


def start(directory: Path, job: Job, settings: Settings, rows: Sequence[Row]) -> Any:
    """The model that training begins with, in float32, its head new unless the checkpoint has one for these labels.

    Raises ValueError if the checkpoint lacks a part of the encoder, or has one of another shape.
    """
    changes = {"dtype": "float32", "strict": False, "seed": settings.seed, "ignore_mismatched_sizes": True}
    model, report = job.head.from_pretrained(directory, **changes, **job.fields)
    lacking = [*report.missing, *(name for name, *_ in report.mismatched if not name.startswith("classifier."))]
    if lacking:
        raise ValueError(f"{directory}: expected the encoder that its config.json describes: {', '.join(lacking[:3])}")
    if "classifier.weight" not in [*report.initialised, *(name for name, *_ in report.mismatched)]:
        renew(model, directory, job.labels, settings.seed)
    job.prepare(model, report.initialised, rows)
    return model


def renew(model: Any, directory: Path, labels: Sequence[str], seed: int) -> None:
    """Initialise the classifier if the checkpoint's is one for other labels, as many as these."""
    known = list(ErnieMConfig.from_pretrained(directory).id2label.values())
    if not labels or known == list(labels):
        return
    shapes = {name: tuple(x.shape) for name, x in model.classifier.state_dict().items()}
    fresh = initialise(shapes, model.config, seed, np.dtype(np.float32))
    model.classifier.load_state_dict({name: torch.from_numpy(x) for name, x in fresh.items()})
    told = f"{', '.join(known[:4])}{', ...' if len(known) > 4 else ''}"
    print(
        f"{directory}: a head for other labels, {told}: not loaded, but initialised from seed {seed}", file=sys.stderr
    )


def measure(
    job: Job, tests: dict[Path, list[Any]], rows: dict[Path, list[Row]], directory: Path, processes: Group
) -> None:
    """Print the figures of the model that was kept on each file, and on each language of its texts."""
    if not tests:
        return
    model = job.head.from_pretrained(directory, device=processes.device)
    for path, records in tests.items():
        said = predict(job, model, len(records), rows[path])
        found: dict[str, Any] = {"file": str(path), "records": len(records), **job.figures(records, said)}
        languages = sorted({record.language for record in records if record.language is not None})
        for language in languages:
            of = [i for i, record in enumerate(records) if record.language == language]
            own = job.figures([records[i] for i in of], [said[i] for i in of])
            found.setdefault("languages", {})[language] = {"records": len(of), **own}
        print(json.dumps(found, ensure_ascii=False))
