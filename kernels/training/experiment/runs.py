"""The runs of the experiment: for each seed the start, then the arms, then for each a head that classifies.

    OUT/texts/             the training texts, tokenised
    OUT/seed-0/start/      a run of the loop, with its checkpoint, log and model
    OUT/seed-0/M+T/        an arm; and in module/ its classification head

A run that is complete has `done.json`; one that was stopped goes on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.training.labelled import read_labelled
from ernie_m.reference.training.shards import Shards, fingerprint, identity, shard
from ernie_m.tokenizer import ErnieMTokenizer
from ernie_m.tokenizer.files import read_json
from ernie_m.tokenizer.new_files import replacing

from ...words import ErnieMForMaskedLM
from .. import saving
from ..finetuning import FineTuning
from ..jobs import Classify
from ..logs import read
from ..loop import Task, train
from ..parallel import Group
from ..pretraining import Pretraining, vocabulary_of
from ..settings import Settings
from .design import ARMS, START, Arm, mixture, write_texts

DONE, SPENT = "done.json", "spent.json"
# The most tokens of a text that is classified.
LONGEST = 128


@dataclass(frozen=True)
class Experiment:
    """A corpus of `ernie_m.reference.training.corpus`, a folder for the runs, and a recipe."""

    corpus: Path
    out: Path
    recipe: Mapping[str, Any]
    processes: Group

    @cached_property
    def tokenizer(self) -> ErnieMTokenizer:
        """The corpus's."""
        return ErnieMTokenizer.from_pretrained(self.corpus / "tokenizer")

    @cached_property
    def shards(self) -> Shards:
        """The training texts, most of them without their translations."""
        source = self.out / "train.jsonl"
        if not source.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            counts = write_texts(self.corpus / "train.jsonl", source, self.recipe["share"])
            say(", ".join(f"{count:,} {name}" for name, count in counts.items()))
        return shard([source], self.tokenizer, self.out / "texts", self.recipe["longest"])

    @cached_property
    def records(self) -> list[Any]:
        """English texts with the module that they are about, the same for all."""
        found = read_labelled("classify", self.corpus / "jobs" / "module.train.jsonl")
        chosen = np.random.default_rng(0).permutation(len(found))[: self.recipe["classification"]["texts"]]
        return [found[i] for i in chosen]

    def job(self) -> Classify:
        """Classification of texts by module."""
        return Classify(self.tokenizer, LONGEST, self.records)

    def directory(self, seed: int, arm: Arm) -> Path:
        """Where a run is."""
        return self.out / f"seed-{seed}" / arm.name.replace(", ", " ")

    def run(self, seeds: Sequence[int]) -> None:
        """The runs of some seeds that are not complete yet."""
        for seed in seeds:
            for arm in (START, *ARMS):
                directory = self.directory(seed, arm)
                if not (directory / DONE).exists():
                    self._pretrain(seed, arm, directory)
                if not (directory / "module" / DONE).exists():
                    self._classify(seed, directory)

    def _pretrain(self, seed: int, arm: Arm, directory: Path) -> None:
        predicted = self.recipe["predicted"]["start" if arm is START else "arm"]
        words = vocabulary_of(self.tokenizer)
        # The start and the arms draw different texts.
        drawn = mixture(arm, self.shards, words, self.recipe["batch_tokens"], predicted, 2 * seed + (arm is START))
        settings = self._settings(len(drawn.objectives), seed, self.recipe["settings"])
        if arm is START:
            config = ErnieMConfig(vocab_size=len(self.tokenizer), **self.recipe["model"])
            model = ErnieMForMaskedLM.from_config(config, seed=seed)
        else:
            model = ErnieMForMaskedLM.from_pretrained(self.directory(seed, START) / saving.MODEL, dtype="float32")
        made_of: dict[str, Any] = {"arm": arm.name, "recipe": dict(self.recipe)}
        made_of |= {"tokenizer": fingerprint(self.tokenizer), "texts": [identity(self.out / "train.jsonl")]}
        self._train(model, Pretraining(drawn, self.tokenizer, directory), settings, directory, made_of)

    def _classify(self, seed: int, directory: Path) -> None:
        about, job = self.recipe["classification"], self.job()
        task = FineTuning(job, job.rows(self.records), about["batch"], directory / "module", seed=seed)
        rate = {"rate": about["rate"], "warmup": round(about["warmup"] * task.steps)}
        settings = self._settings(task.steps, seed, rate)
        options: dict[str, Any] = {"dtype": "float32", "strict": False, "seed": seed}
        model, _ = job.head.from_pretrained(directory / saving.MODEL, **options, **job.fields)
        self._train(model, task, settings, directory / "module", {"recipe": dict(self.recipe)})

    def _settings(self, steps: int, seed: int, chosen: Mapping[str, Any]) -> Settings:
        warmup = min(chosen.get("warmup", 0), steps)
        often = {"evaluate_every": steps, "save_every": min(steps, 500), "log_every": min(steps, 50)}
        return Settings.from_dict({"steps": steps, "seed": seed, **chosen, "warmup": warmup, **often})

    def _train(self, model: Any, task: Task, settings: Settings, directory: Path, made_of: dict[str, Any]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        resumed = (directory / saving.FILE).exists()
        with spent(directory):
            train(model, task, settings, directory, self.processes, made_of | {"settings": settings.as_dict()}, resumed)
        last = [record for record in read(directory / "log.jsonl") if "norm" in record][-1]
        found = {name: last[name] for name in ("step", "tokens", "targets")}
        found["cpu_seconds"] = read_json(directory / SPENT)["cpu_seconds"]
        with replacing(directory / DONE) as (file,):
            file.write((json.dumps(found) + "\n").encode())
        # The model is in model/.
        (directory / saving.FILE).unlink()
        say(f"{directory.relative_to(self.out)}: {found['step']:,} steps, {found['cpu_seconds']:.0f} s of CPU time")


@contextmanager
def spent(directory: Path) -> Iterator[None]:
    """Add the CPU time that is spent inside to what is on record, also if it is stopped."""
    path = directory / SPENT
    before = read_json(path)["cpu_seconds"] if path.exists() else 0.0
    start = time.process_time()
    try:
        yield
    finally:
        with replacing(path) as (file,):
            file.write(json.dumps({"cpu_seconds": round(before + time.process_time() - start, 1)}).encode())


def say(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)
