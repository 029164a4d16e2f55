"""`python -m ernie_m.kernels pretrain`: train a masked language model with the paper's objectives."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from ernie_m.reference.cli.model import CHECKPOINT, checkpoint_directory
from ernie_m.reference.cli.numbers import directory_name, some_path
from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.training.mixture import PARALLEL, Mixture, check_mixture, longest_text
from ernie_m.reference.training.shards import Shards, fingerprint, shard
from ernie_m.reference.training.texts import read_segments
from ernie_m.tokenizer import ErnieMTokenizer
from ernie_m.tokenizer.files import read_json, refuse_irregular

from ..training import Group, Pretraining, Settings, group, train, vocabulary_of
from ..words import ErnieMForMaskedLM
from .runs import changed, kept, prepared, stopping

DESCRIPTION = """\
Train a masked language model on sentences and their translations.

Texts (UTF-8): a segment on each line, in one language or in several:
  .jsonl  {"en": "A cat.", "de": "Eine Katze."}            names that begin with "_" are left out
  .tsv    a header with the languages, one for each column; cells may be empty

A recipe is a JSON file:
  {"model": {"hidden_size": 96, ...},                      a new model's configuration, without the vocabulary's size
   "objectives": ["mmlm", "camlm"],                        one per step, in turn: mmlm, tlm, camlm, btmlm
   "arguments": {"camlm": {"masked_sides": "one"}},        as the functions in reference/objectives take them
   "batch_tokens": 1024, "pairs_with": "en", "alpha": 0.7, "longest": 62,
   "settings": {"steps": 10000, "rate": 0.002, ...}}       as in kernels/training/settings.py
One side of each pair is in the language "pairs_with"; without it, all pairs are drawn. Languages, or pairs of them, are
drawn in proportion to (their number of texts)^alpha. Texts have at most "longest" tokens: longer sentences are cut into
several, longer texts with translations left out.
"""
EPILOG = """\
OUT holds the tokenised texts, checkpoint.pt, log.jsonl, log.png if matplotlib is installed, and in model/ the model
that is best on --validation, with its tokenizer: the first with the highest acc@1, how often a text's translation is
the nearest; of texts without translations, that with the highest log-likelihood of masked words; without --validation,
the last. SIGTERM and Ctrl-C finish a step and save; --resume goes on exactly there.
With several processes: torchrun --nproc-per-node 2 -m ernie_m.kernels pretrain ..."""
RECIPE: dict[str, Any] = {
    "model": {},
    "objectives": ["mmlm"],
    "arguments": {},
    "batch_tokens": 2048,
    "pairs_with": None,
    "alpha": 0.7,
    "longest": 126,
    "settings": {},
}
# Batches of each objective, and translations of each pair, that validation takes.
VALIDATION_BATCHES, VALIDATION_ITEMS = 4, 500
# Of a batch. Texts for 32 batches are drawn at once.
MOST_TOKENS = 2**24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add = parser.add_argument
    add("--data", metavar="FILE", type=some_path, nargs="+", required=True, help="texts to train on, .tsv or .jsonl")
    add("--validation", metavar="FILE", type=some_path, nargs="+", default=[], help="texts to validate on")
    add("--tokenizer", metavar="DIR", type=some_path, help="by default the tokenizer in --model")
    begin = f"begin with this checkpoint, not with a new model: {CHECKPOINT}"
    add("--model", metavar="DIR", type=directory_name, help=begin)
    add("--recipe", metavar="FILE", type=some_path, required=True, help="what to train and how, see above")
    add("--set", metavar="NAME=VALUE", action="append", default=[], help="change one of the recipe's settings")
    add("--out", metavar="OUT", type=some_path, required=True, help="directory of the run")
    add("--resume", action="store_true", help="go on with the run in OUT, if there is one")
    add("--device", choices=["cpu", "cuda"], help="by default a GPU if there is one")


def run(arguments: argparse.Namespace) -> int:
    """Train, and return the exit code."""
    recipe = read_recipe(arguments.recipe, arguments.set)
    directory = None if arguments.model is None else checkpoint_directory(arguments.model)
    source: Path | None = arguments.tokenizer or directory
    if source is None:
        raise ValueError("--tokenizer: expected a directory, as there is no --model")
    tokenizer = ErnieMTokenizer.from_pretrained(source)
    found = None if directory is None else config_of(directory, len(tokenizer))
    with naming(arguments.recipe):
        settings, config = check_recipe(recipe, tokenizer, found)
    for path in (*arguments.data, *arguments.validation):
        refuse_irregular(path)
    for files in filter(None, (arguments.data, arguments.validation)):
        check_pairs(files, recipe["objectives"], recipe["pairs_with"], arguments.recipe)
    out = arguments.out
    with group(arguments.device) as processes, prepared(out, arguments.resume, processes) as resumed:
        if processes.size > 1 and settings.parallel == "fsdp" and "btmlm" in recipe["objectives"]:
            # Predicting pseudo-tokens takes as many calls as a process's sentences need, and FSDP2 counts calls.
            raise ValueError("parallel: expected ddp for btmlm in several processes, got 'fsdp'")
        model = start(directory, config, settings)
        data = texts("shards", arguments.data, out, tokenizer, recipe, processes)
        held_out = None
        if arguments.validation:
            shards = texts("validation", arguments.validation, out, tokenizer, recipe, processes)
            held_out = mixture(shards, tokenizer, recipe, VALIDATION_BATCHES, seed=1)
        per_step = settings.accumulate * processes.size
        drawn = mixture(data, tokenizer, recipe, per_step, settings.seed)
        task = Pretraining(drawn, tokenizer, out, held_out, VALIDATION_ITEMS)
        made_of = {**recipe, "tokenizer": fingerprint(tokenizer), "batches of a step": per_step}
        made_of["config"] = config.to_dict()
        made_of["validated"] = held_out is not None
        with stopping(processes):
            train(model, task, settings, out, processes, made_of, resumed)
        if processes.leads:
            print(f"model and tokenizer: {kept(out)}", file=sys.stderr)
    return 0


def read_recipe(path: Path, changes: list[str]) -> dict[str, Any]:
    """A recipe with everything it leaves open, and with changed settings. Raises ValueError that names the file."""
    found = read_json(path)
    recipe = {**RECIPE, **found}
    with naming(path):
        for name in found:
            if name not in RECIPE:
                raise ValueError(f"{name}: expected one of {', '.join(RECIPE)}")
        for name in ("model", "settings"):
            if not isinstance(recipe[name], dict):
                raise ValueError(f"{name}: expected an object, got {recipe[name]!r:.80}")
        for name in ("batch_tokens", "longest"):
            if type(recipe[name]) is not int or not 1 <= recipe[name] <= MOST_TOKENS:
                expected = f"expected a whole number from 1 to {MOST_TOKENS}"
                raise ValueError(f"{name}: {expected}, got {recipe[name]!r:.80}")
        if not (recipe["pairs_with"] is None or isinstance(recipe["pairs_with"], str)):
            raise ValueError(f"pairs_with: expected a language or null, got {recipe['pairs_with']!r:.80}")
    return recipe | {"settings": recipe["settings"] | changed(changes)}


@contextmanager
def naming(where: Path | str) -> Iterator[None]:
    """Put where a value stands before the message of an error about it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def config_of(directory: Path, size: int) -> ErnieMConfig:
    """The configuration of a checkpoint. Raises ValueError if it has fewer word vectors than the tokenizer tokens."""
    config = ErnieMConfig.from_pretrained(directory)
    if config.vocab_size < size:
        raise ValueError(f"--tokenizer: expected at most the {config.vocab_size:,} tokens of --model, got {size:,}")
    return config


def check_recipe(
    recipe: dict[str, Any], tokenizer: ErnieMTokenizer, config: ErnieMConfig | None
) -> tuple[Settings, ErnieMConfig]:
    """The settings, and the configuration of the model to begin with: `config`, or else what the recipe describes.

    Raises ValueError, naming the entry, for all that training could not use, before texts are tokenised.
    """
    with naming("settings"):
        settings = Settings.from_dict(recipe["settings"])
    check_mixture(vocabulary_of(tokenizer), recipe["objectives"], recipe["alpha"], recipe["arguments"])
    with naming("model"):
        fields, size = recipe["model"], len(tokenizer)
        if config is not None and fields:
            raise ValueError("describes a new model, and --model names another; expected one of the two")
        if fields.get("vocab_size", size) != size:
            raise ValueError(f"vocab_size: expected {size}, that of the tokenizer, got {fields['vocab_size']!r:.80}")
        config = config or ErnieMConfig(vocab_size=size).replace(**fields)
    for name in recipe["objectives"]:
        most = longest_text(name, config.max_length, recipe["arguments"].get(name, {}))
        if recipe["longest"] > most:
            model = f"a model with max_position_embeddings = {config.max_position_embeddings}"
            raise ValueError(f"longest: expected at most {most} for {name} in {model}, got {recipe['longest']!r:.80}")
    return settings, config


def check_pairs(files: Sequence[Path], objectives: Sequence[str], pairs_with: str | None, recipe: Path) -> None:
    """Raise ValueError if an objective needs translations that the files lack, before they are tokenised.

    Reads the files no further than to the first translation that will do.
    """
    parallel = [name for name in objectives if name in PARALLEL]
    if not parallel:
        return
    languages: set[str] = set()
    for segment in chain.from_iterable(map(read_segments, files)):
        if len(segment) > 1:
            if pairs_with is None or pairs_with in segment:
                return
            languages.update(segment)
    texts = f"texts with translations in {', '.join(map(str, files))}"
    if not languages:
        raise ValueError(f"{recipe}: objectives: {parallel[0]}: expected {texts}, found none")
    known = ", ".join(sorted(languages))
    raise ValueError(f"{recipe}: pairs_with: expected a language of the {texts}, one of {known}, got {pairs_with!r}")


def texts(
    name: str, files: list[Path], out: Path, tokenizer: ErnieMTokenizer, recipe: dict[str, Any], processes: Group
) -> Shards:
    """The tokenised texts of some files; the first process makes them."""
    target = out / name

    def progress(segments: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\rtokenised {segments:,} segments\x1b[K")
            sys.stderr.flush()

    if processes.leads:
        made = not target.exists()
        # The corpus command tokenises what it writes, for the recipe of the checkpoint that ships.
        ready = files[0].parent / "shards" / files[0].stem if len(files) == 1 else None
        found = shard(files, tokenizer, target, recipe["longest"], progress, ready)
        if made:
            about = found.about
            left = "".join(f"; left out: {count:,} {what}" for what, count in about["left_out"].items())
            end = "\r" if sys.stderr.isatty() else ""
            print(f"{end}{target}: {about['segments']:,} segments, {about['tokens']:,} tokens{left}", file=sys.stderr)
    processes.wait()
    return Shards(target)


def mixture(found: Shards, tokenizer: ErnieMTokenizer, recipe: dict[str, Any], per_step: int, seed: int) -> Mixture:
    """What the recipe draws from tokenised texts."""
    return Mixture(
        found,
        vocabulary_of(tokenizer),
        tuple(recipe["objectives"]),
        recipe["batch_tokens"],
        per_step,
        seed,
        recipe["pairs_with"],
        recipe["alpha"],
        recipe["arguments"],
    )


def start(directory: Path | None, config: ErnieMConfig, settings: Settings) -> Any:
    """The model that training begins with, in float32."""
    if directory is not None:
        model, _ = ErnieMForMaskedLM.from_pretrained(directory, dtype="float32", strict=False, seed=settings.seed)
        return model
    return ErnieMForMaskedLM.from_config(config, seed=settings.seed)
