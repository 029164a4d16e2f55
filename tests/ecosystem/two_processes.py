"""One of two processes that train a model together: `python two_processes.py KIND RANK FOLDER` (see test_distributed).

Exits with an error unless two steps, and the inference after them, are those of one process with the whole batch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as dist
from ecosystem_helpers import batch, close, infer, scalar, small
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch_models import way

from ernie_m.kernels.encoder import EncoderLayer


def shared(model: Any, kind: str) -> Any:
    """The model, its work divided between the processes in the way `kind`."""
    if kind == "DDP":
        return DistributedDataParallel(model)
    if kind == "FSDP1":
        policy = ModuleWrapPolicy({EncoderLayer})
        return FullyShardedDataParallel(
            model, auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=True
        )
    mesh = init_device_mesh("cpu", (2,))
    if kind == "FSDP2 by layer":
        for layer in model.ernie_m.encoder.layers:
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def main(kind: str, rank: int, folder: str) -> None:
    """Train in both ways and compare."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    plain, given = small().train(), batch(B=4)
    model = shared(small().train(), kind)
    half = {name: x[2 * rank : 2 * rank + 2] for name, x in given.items()}
    runs = [(net, torch.optim.SGD(net.parameters(), lr=0.1), rows) for net, rows in ((plain, given), (model, half))]
    close(infer(model, half), infer(plain, half))
    for net, optimiser, rows in runs * 2:
        optimiser.zero_grad()
        scalar(net(**rows)).backward()
        optimiser.step()
    state = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in model.state_dict().items()}
    close({name.removeprefix("module."): x for name, x in state.items()}, dict(plain.state_dict()))
    close(infer(model.eval(), half), infer(plain.eval(), half))
    dist.destroy_process_group()


if __name__ == "__main__":
    with way("plain operations"), torch.enable_grad():
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
