"""Checkpoints for the command line's tests, and a way to run it in its own process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from helpers import random_model

import ernie_m.reference as ernie
from ernie_m.reference import demo as demo_checkpoint
from ernie_m.tokenizer import ErnieMTokenizer

TOKENIZER_FILES = ("sentencepiece.bpe.model", "vocab.txt")
PROGRAM = [sys.executable, "-m", "ernie_m.reference"]
# One thread: on a busy machine, a second one waits longer than it works.
ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
# If set, it would hide a buffer that is not flushed.
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)
LONGEST = 34


def interruptible() -> None:
    """Restore the signals that a process started in the background would ignore."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def make_checkpoint(directory: Path, cls: Any = ernie.ErnieMModel, seed: int = 0, **fields: Any) -> Path:
    """Write a checkpoint of a tiny model for 34 tokens, with random weights and the demo's tokenizer."""
    vocab = ErnieMTokenizer.from_pretrained(demo_checkpoint.directory())
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"vocab_size": len(vocab), "max_position_embeddings": LONGEST + 2}
    model = random_model(cls, seed, np.float32, **{**sizes, **fields})
    model.save_pretrained(directory)
    for name in TOKENIZER_FILES:
        shutil.copy(demo_checkpoint.directory() / name, directory / name)
    return directory


def corpus(*languages: str) -> list[str]:
    """Everyday sentences in 21 languages, by language code."""
    return [line for code in languages for line in (CORPUS / f"{code}.txt").read_text("utf-8").splitlines()]


CORPUS = Path(__file__).resolve().parent / "fixtures" / "sentences"


def run_program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run `ernie-m` in its own process."""
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, env=ENVIRONMENT, timeout=120, **options)
