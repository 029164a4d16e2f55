"""Tasks in the engines that spread work over machines, here on one machine with two workers; in torchrun too."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import corpus, make_checkpoint

import ernie_m.reference as ernie
from ernie_m.reference import demo
from ernie_m.reference.tasks import Encoder, Extractor

TEXTS = corpus("en", "de", "ja")[:40]
WORKER = """
import os, sys
import numpy as np
from ernie_m.reference.tasks import Encoder
directory, file, out = sys.argv[1:]
texts = open(file, encoding="utf-8").read().splitlines()
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
part = texts[len(texts) * rank // size : len(texts) * (rank + 1) // size]
np.save(f"{out}/part-{rank}.npy", Encoder.from_pretrained(directory).vectors(part))
"""


@pytest.fixture(scope="module")
def extraction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a random extraction head."""
    return make_checkpoint(tmp_path_factory.mktemp("uie"), ernie.ErnieMForInformationExtraction)


def close(found: Any, expected: Any) -> None:
    """Equal up to the rounding of other batches."""
    np.testing.assert_allclose(np.array(found, np.float32), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.all
def test_ray_data() -> None:
    """`map_batches` with one task object in each of two workers."""
    ray = pytest.importorskip("ray", reason="ray[data] is not installed")

    class Vectors:
        def __init__(self, directory: str) -> None:
            self.encoder = Encoder.from_pretrained(directory)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {**batch, "vector": self.encoder.vectors(list(batch["text"]))}

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        given = ray.data.from_items([{"index": i, "text": text} for i, text in enumerate(TEXTS)])
        made = given.map_batches(Vectors, fn_constructor_args=[str(demo.directory())], concurrency=2, batch_size=8)
        rows = sorted(made.take_all(), key=lambda row: row["index"])
    finally:
        ray.shutdown()
    assert [row["text"] for row in rows] == TEXTS
    close([row["vector"] for row in rows], Encoder.from_pretrained(demo.directory()).vectors(TEXTS))


@pytest.mark.all
def test_datasets(extraction: Path) -> None:
    """`map` in two processes, with a task object that travels to them."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    extractor = Extractor.from_pretrained(extraction)

    def extract(batch: dict[str, Any]) -> dict[str, Any]:
        return {"found": [json.dumps(found) for found in extractor.extract(batch["text"], ["cat"], 0.3)]}

    made = datasets.Dataset.from_dict({"text": TEXTS}).map(extract, batched=True, batch_size=8, num_proc=2)
    places = [[(x["start"], x["end"]) for x in json.loads(found).get("cat", [])] for found in made["found"]]
    wanted = extractor.extract(TEXTS, ["cat"], 0.3)
    assert places == [[(x["start"], x["end"]) for x in found.get("cat", [])] for found in wanted]
    assert any(places)


@pytest.mark.all
def test_two_processes_of_torchrun(tmp_path: Path) -> None:
    """Their parts, one after the other."""
    pytest.importorskip("torch")
    (tmp_path / "worker.py").write_text(WORKER, "utf-8")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    places = [str(tmp_path / "worker.py"), str(demo.directory()), str(tmp_path / "texts.txt"), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *places], check=True, timeout=300, env=environment, capture_output=True)
    joined = np.concatenate([np.load(tmp_path / f"part-{i}.npy") for i in range(2)])
    close(joined, Encoder.from_pretrained(demo.directory()).vectors(TEXTS))


def test_task_objects_travel_to_other_processes(extraction: Path) -> None:
    """Engines pickle them."""
    encoder, extractor = Encoder.from_pretrained(demo.directory()), Extractor.from_pretrained(extraction)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encoder)).vectors(TEXTS[:5]), encoder.vectors(TEXTS[:5]))
    again = pickle.loads(pickle.dumps(extractor))
    assert again.extract(TEXTS[:5], ["cat"], 0.3) == extractor.extract(TEXTS[:5], ["cat"], 0.3)
