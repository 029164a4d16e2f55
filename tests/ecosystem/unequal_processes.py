"""One of two processes that train with dropout: `python unequal_processes.py KIND RANK FOLDER` (see test_distributed).

Each has other rows with another number of tokens. Losses are sums divided by the number of targets of both, which is
all-reduced, and dropout counts the tokens of both. Exits with an error unless three steps of AdamW are those of one
process with the whole batch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as dist
from ecosystem_helpers import close, small
from torch import Tensor
from torch.distributed.tensor import DTensor
from two_processes import shared

from ernie_m.kernels import ErnieMForTokenClassification
from ernie_m.kernels.dropout import draw_seeds

DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.4}
LENGTHS = (6, 3, 1, 5)
# The rows of each process: 6 tokens, and 9.
ROWS = (slice(0, 1), slice(1, 4))


def batch(seed: int) -> dict[str, Tensor]:
    """Rows of unequal lengths, and targets of which some are ignored."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).to(torch.int64)
    ids = torch.randint(3, 50, mask.shape, generator=generator)
    labels = torch.randint(0, 2, mask.shape, generator=generator)
    labels[mask == 0] = -100
    labels[1, 0] = -100
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask, "labels": labels}


def train(net: Any, rank: int | None) -> None:
    """Three steps, on the whole batch or on one process's rows."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.01)
    for step in range(3):
        given, options = batch(step), {"dropout_seeds": draw_seeds(2)}
        factor = torch.tensor(1.0, dtype=torch.float64)
        if rank is not None:
            counts = given["attention_mask"].sum(dim=1)
            options["first_token"] = int(counts[: ROWS[rank].start].sum())
            given = {name: x[ROWS[rank]] for name, x in given.items()}
            own = (given["labels"] >= 0).sum()
            total = own.clone()
            dist.all_reduce(total)
            # A call's loss is the mean over its own targets; the processes' gradients are averaged.
            factor = dist.get_world_size() * own.double() / total
        optimiser.zero_grad()
        (net(**given, **options).loss * factor).backward()
        optimiser.step()


def main(kind: str, rank: int, folder: str) -> None:
    """Train in both ways and compare."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    plain = small(ErnieMForTokenClassification, **DROPOUT).train()
    model = shared(small(ErnieMForTokenClassification, **DROPOUT).train(), kind)
    for net, own in ((plain, None), (model, rank)):
        torch.manual_seed(7)
        train(net, own)
    state = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in model.state_dict().items()}
    # AdamW turns the rounding errors of a gradient that is 0 into steps.
    kept = {name.removeprefix("module."): x for name, x in state.items() if not name.endswith("k_proj.bias")}
    close(kept, {name: x for name, x in plain.state_dict().items() if name in kept})
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
