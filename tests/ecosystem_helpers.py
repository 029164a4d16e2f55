"""Small torch models, batches and losses for the tests of what other libraries do to a module."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Embedding, LayerNorm, Linear, Module, ModuleList
from torch_models import pair

from ernie_m.kernels import ErnieMForSequenceClassification

# Two heads of size 16, for which there is a kernel; no dropout, so that every way of computing gives the same.
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
QKV = ("q_proj", "k_proj", "v_proj")
LAYER = "ernie_m.encoder.layers.0"


def small(cls: Any = ErnieMForSequenceClassification, dtype: Any = np.float64, seed: int = 0, **config: Any) -> Any:
    """A model in `eval()` mode with two layers and all weights random."""
    return pair(cls, seed, dtype, **{**SIZES, **config})[1]


def batch(cls: Any = ErnieMForSequenceClassification, seed: int = 0, B: int = 3, S: int = 6) -> dict[str, Tensor]:
    """Ids, a mask with padding, and the targets of the class."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (B, S), generator=generator)
    mask = torch.ones(B, S, dtype=torch.int64)
    mask[0, S - 2 :] = 0
    found = {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}
    name = cls.__name__
    if "MultipleChoice" in name:
        found = {key: x[None] for key, x in found.items()} | {"labels": torch.tensor([1])}
    elif "SequenceClassification" in name:
        found["labels"] = torch.randint(0, 2, (B,), generator=generator)
    elif "TokenClassification" in name:
        found["labels"] = torch.randint(0, 2, (B, S), generator=generator)
    elif "QuestionAnswering" in name:
        found |= {"start_positions": torch.ones(B, dtype=torch.int64), "end_positions": torch.full((B,), 2)}
    elif "InformationExtraction" in name:
        found |= {key: torch.rand(B, S, generator=generator).double() for key in ("start_positions", "end_positions")}
    return found


def without_targets(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch as at inference."""
    return {key: x for key, x in given.items() if key in ("input_ids", "attention_mask")}


def numbers(output: Any) -> Tensor:
    """All floating-point numbers of an output, in one row."""
    tensors = [x for value in output.values() for x in (value if isinstance(value, tuple) else (value,))]
    return torch.cat([x.flatten() for x in tensors])


def scalar(output: Any) -> Tensor:
    """The loss, or, without one, a sum in which every number has a different weight."""
    if "loss" in output:
        return output["loss"]
    row = numbers(output)
    return (row * torch.linspace(-1, 1, row.numel(), dtype=row.dtype)).sum()


@torch.no_grad()
def infer(model: Any, given: dict[str, Tensor]) -> Tensor:
    """The numbers of a call without gradients."""
    return numbers(model(**given)).clone()


def gradients(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of every parameter that gets one, by name."""
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        scalar(model(**given)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def both(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The numbers with and without gradients, by the way they were computed."""
    with torch.enable_grad():
        recorded = numbers(model(**given)).detach().clone()
    return {"inference": infer(model, given), "training": recorded}


def step(model: Any, given: dict[str, Tensor], lr: float = 0.1) -> None:
    """One step of gradient descent."""
    optimiser = torch.optim.SGD(model.parameters(), lr=lr)
    optimiser.zero_grad()
    scalar(model(**given)).backward()
    optimiser.step()


def leaves(model: Module) -> dict[str, Module]:
    """Every Linear, LayerNorm and Embedding, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, (Linear, LayerNorm, Embedding))}


def containers(model: Module) -> dict[str, Module]:
    """Every other module that can be called."""
    return {
        name: m for name, m in model.named_modules() if not isinstance(m, (Linear, LayerNorm, Embedding, ModuleList))
    }


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of its own memory."""
    return {name: x.detach().clone() for name, x in state.items()}


def close(a: Any, b: Any, tolerance: float = 1e-9) -> None:
    """Assert that two tensors, or two dictionaries of tensors, agree but for rounding."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# The modules of `small()` by name. FIRST leaves out the second layer, for tests that take a while for each.
LEAVES = tuple(leaves(small()))
LINEARS = tuple(name for name, module in leaves(small()).items() if isinstance(module, Linear))
CONTAINERS = tuple(name for name in containers(small()) if name)
FIRST = tuple(name for name in LEAVES if "layers.1" not in name)
