"""Compares the speed of the reference with transformers 4.40.2: base model, float32, 2 threads, the same weights.

    python tests/speed/reference.py [--runs 7]

For each shape, ours and theirs are timed in turn, in one process. Prints the median of each, and the median of the
ratios of neighbouring runs. Peak memory is measured in a separate process for each of the two.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "2")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np

import ernie_m.reference as ernie

SHAPES = {
    "1 x 16": ([16], 16),
    "8 x 128": ([128] * 8, 128),
    "4 x 512": ([512] * 4, 512),
    "8 rows of 16 to 128, padded to 128": ([16, 32, 48, 64, 80, 96, 112, 128], 128),
}


def batch(lengths: list[int], width: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": np.where(mask == 1, rng.integers(2, 250002, mask.shape), 1), "attention_mask": mask}


def load(which: str, directory: str) -> Any:
    """Return a function that runs the model `which` on a batch."""
    if which == "ours":
        model = ernie.ErnieMModel.from_pretrained(directory)
        return lambda inputs: model(**inputs).last_hidden_state
    import torch
    import transformers

    torch.set_num_threads(2)
    peer = transformers.ErnieMModel.from_pretrained(directory).eval()

    def run(inputs: dict[str, np.ndarray]) -> Any:
        with torch.no_grad():
            return peer(**{name: torch.tensor(value) for name, value in inputs.items()}).last_hidden_state

    return run


def peak(which: str, directory: str, shape: str) -> None:
    """Load one model, run one batch three times, and print the peak resident memory of this process in MiB."""
    run = load(which, directory)
    for _ in range(3):
        run(batch(*SHAPES[shape]))
    # Not ru_maxrss: on Linux, a child process starts with its parent's peak.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) // 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        peak(*arguments.peak)
        return
    with tempfile.TemporaryDirectory() as directory:
        ernie.ErnieMModel.from_config(ernie.ErnieMConfig()).save_pretrained(directory)
        ours, theirs = load("ours", directory), load("theirs", directory)
        for shape, (lengths, width) in SHAPES.items():
            inputs = batch(lengths, width)
            difference = np.abs((ours(inputs) - np.asarray(theirs(inputs)))[inputs["attention_mask"] == 1]).max()
            times = []
            for _ in range(arguments.runs):
                stamps = [time.perf_counter()]
                for run in (ours, theirs):
                    run(inputs)
                    stamps.append(time.perf_counter())
                times.append(np.diff(stamps))
            mine, peer = np.median(times, axis=0)
            ratio = np.median([a / b for a, b in times])
            print(f"{shape:36} {mine:7.3f} s {peer:7.3f} s  ratio {ratio:.2f}  largest difference {difference:.1e}")
        for shape in ("8 x 128", "4 x 512"):
            memory = [
                int(subprocess.check_output([sys.executable, __file__, "--peak", which, directory, shape]))
                for which in ("ours", "theirs")
            ]
            print(f"{shape:36} peak memory {memory[0]} MiB, {memory[1]} MiB, ratio {memory[0] / memory[1]:.2f}")


if __name__ == "__main__":
    main()
