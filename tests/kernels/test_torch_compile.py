"""`torch.compile(fullgraph=True)` of whole models: one graph that reads no values on the host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ids_like
from rounding import MODEL_BOUND, U32
from torch_models import CLASSES, assert_same, pair, tensors, way

QUESTION = CLASSES[4]
FLOAT32 = 64 * U32  # one layer in another order of sums: each way has some 30 roundings of numbers around 1
MASK = np.array([[1, 1, 1, 0, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
CU = torch.tensor([0, 3, 3, 5], dtype=torch.int32)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """A backend that runs graphs unchanged, after autograd, and records the names of their operations."""

    def __init__(self) -> None:
        self.operations: list[list[str]] = []

    def __call__(self, module: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.common import aot_autograd

        def keep(graph: Any, _inputs: Any) -> Any:
            self.operations.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
            return graph.forward

        return aot_autograd(fw_compiler=keep)(module, inputs)

    def count(self, word: str) -> int:
        return sum(word in name for names in self.operations for name in names)


def batch_of(mask: np.ndarray, **more: Any) -> dict[str, Any]:
    return tensors({"input_ids": ids_like(mask), "attention_mask": mask, **more})


def test_padded_call_is_one_graph_for_all_masks_and_lengths() -> None:
    """Kernels and a head with its loss, for several numbers of tokens, none at all, and another S: at most one more
    graph, for the new S. Only the number of tokens depends on values."""
    model = pair(QUESTION, dtype=np.float32, num_hidden_layers=1)[1]
    graphs = Graphs()
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    targets = {"start_positions": np.array([1, 2, 0]), "end_positions": np.array([2, 2, 0])}
    with way("kernels"):
        for mask in (MASK, MASK * 0, MASK * 0 + 1, np.pad(MASK, ((0, 0), (0, 2)))):
            batch = batch_of(mask, **targets)
            assert_same(compiled(**batch), model(**batch), FLOAT32)
    assert len(graphs.operations) <= 2
    assert graphs.count("nonzero") == len(graphs.operations)
    assert graphs.count("_local_scalar_dense") == 0
    assert graphs.count("ernie_m.packed_attention") == graphs.count("ernie_m.bias_gelu") == len(graphs.operations)


def test_head_on_first_tokens_is_one_graph() -> None:
    """Rows without tokens, and a batch with none at all, where T = 0."""
    model = pair(CLASSES[1], dtype=np.float32, num_hidden_layers=1)[1]
    graphs = Graphs()
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    with way("kernels"):
        for mask in (MASK, MASK * 0):
            assert_same(compiled(**batch_of(mask)), model(**batch_of(mask)), FLOAT32)
    assert graphs.count("ernie_m.first_token_attention") == len(graphs.operations) == 1


def test_packed_reads_nothing_on_the_host() -> None:
    """No size depends on a value, so CUDA graphs apply; other lengths run the same graph."""
    model = pair(dtype=np.float32, num_hidden_layers=1)[1]
    graphs = Graphs()
    compiled = torch.compile(model.packed, fullgraph=True, backend=graphs)
    ids = torch.arange(2, 7)
    with way("kernels"):
        for cu in (CU, torch.tensor([0, 0, 1, 5], dtype=torch.int32)):
            assert_same(compiled(ids, cu, 4), model.packed(ids, cu, 4), FLOAT32)
    assert len(graphs.operations) == 1
    assert graphs.count("ernie_m.packed_attention") == 1
    assert graphs.count("nonzero") == graphs.count("_local_scalar_dense") == 0


@pytest.mark.parametrize("form", ["padded", "packed"])
def test_training_is_one_graph_with_the_same_gradients(form: str) -> None:
    """Dropout is off, so that both compute the same; float64."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = pair(CLASSES[0], num_hidden_layers=1, **off)[1].train()
    call = torch.compile(model.packed if form == "packed" else model, fullgraph=True, backend="aot_eager")
    found = []
    for function in (call, model.packed if form == "packed" else model):
        out = function(torch.arange(2, 7), CU, 4) if form == "packed" else function(**batch_of(MASK))
        (out.last_hidden_state.cos().sum() + out.pooler_output.sum()).backward()
        found.append({name: x.grad.clone() for name, x in model.named_parameters()})
        model.zero_grad()
    largest = max(float(x.abs().max()) for x in found[0].values())
    for name, x in found[0].items():
        torch.testing.assert_close(x, found[1][name], rtol=0, atol=MODEL_BOUND * largest)


def test_training_with_dropout_is_one_graph() -> None:
    model = pair(CLASSES[2], num_hidden_layers=1, hidden_dropout_prob=0.5)[1].train()
    batch = {key: x[None] for key, x in batch_of(MASK).items()}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    first, second = (compiled(**batch, labels=torch.tensor([1])).loss for _ in range(2))
    assert first.requires_grad and not torch.equal(first, second)


INDUCTOR = """
import sys
import numpy as np, torch
from rounding import MODEL_BOUND, U32
from torch_models import CLASSES, assert_same, pair, tensors

torch.set_num_threads(1)
model = pair(CLASSES[0], dtype=np.float32, num_hidden_layers=1)[1]
mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
compiled = torch.compile(model, fullgraph=True)
with torch.no_grad():
    for m in (mask, mask * 0 + 1):
        assert_same(compiled(mask + 2, attention_mask=m), model(mask + 2, attention_mask=m), 1e-5)
"""


@pytest.mark.all
@pytest.mark.skipif(
    sys.platform == "win32" or not (shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")),
    reason="no C++ compiler found, which inductor needs",
)
def test_inductor_without_the_interpreter(repository: Any) -> None:
    """In a process of its own, where the operations run in plain torch."""
    environment = {key: x for key, x in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(repository / "tests"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", INDUCTOR], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
