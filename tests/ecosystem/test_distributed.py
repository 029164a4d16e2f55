"""torch's own distributed tools in one process: checkpoints, FSDP, DataParallel's gather."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from ecosystem_helpers import batch, close, copied, gradients, infer, numbers, small, step, without_targets
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn import Embedding, Linear
from torch.nn.parallel import DistributedDataParallel, scatter_gather
from torch.utils._pytree import tree_map
from torch_models import CLASSES

from ernie_m.kernels import ErnieMModel
from ernie_m.kernels.encoder import Embeddings, EncoderLayer, Pooler


@pytest.mark.parametrize("cls", CLASSES)
def test_get_and_set_model_state_dict(cls: Any) -> None:
    model, fresh = small(cls, seed=1), small(cls, seed=2)
    state = get_model_state_dict(model)
    assert list(state) == list(model.state_dict())
    assert not set_model_state_dict(fresh, copied(state)).missing_keys
    given = batch(cls)
    close(infer(fresh, given), infer(model, given))


def test_set_model_state_dict_fills_a_model_on_the_meta_device() -> None:
    model, given = small(), batch()
    fresh = type(model)(model.config, device="meta", dtype=torch.float64).eval()
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(fresh.to_empty(device="cpu"), copied(model.state_dict()), options=options)
    close(infer(fresh, given), infer(model, given))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_distributed_checkpoint_resumes_model_and_optimiser(process_group: None, tmp_path: Path) -> None:
    """The next step after loading is the one that would have followed without."""
    model = small().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)

    def advance(net: Any, opt: Any, seed: int) -> None:
        opt.zero_grad()
        net(**batch(seed=seed)).loss.backward()
        opt.step()

    advance(model, optimiser, 0)
    weights, states = get_state_dict(model, optimiser)
    dcp.save({"model": weights, "optimiser": states}, checkpoint_id=tmp_path / "checkpoint")
    advance(model, optimiser, 1)

    fresh = small(seed=5).train()
    other = torch.optim.AdamW(fresh.parameters(), lr=0.01)
    weights, states = get_state_dict(fresh, other)
    state = {"model": weights, "optimiser": states}
    dcp.load(state, checkpoint_id=tmp_path / "checkpoint")
    set_state_dict(fresh, other, model_state_dict=state["model"], optim_state_dict=state["optimiser"])
    advance(fresh, other, 1)
    assert all(torch.equal(x, fresh.state_dict()[name]) for name, x in model.state_dict().items())


# What is sharded on its own, besides the whole model.
PARTS: dict[str, tuple[type, ...]] = {
    "nothing": (),
    "layers": (EncoderLayer,),
    "layers, embeddings, pooler, encoder model": (EncoderLayer, Embeddings, Pooler, ErnieMModel),
    "every Linear and Embedding": (Linear, Embedding),
}


@pytest.mark.parametrize("parts", PARTS)
def test_fully_shard(parts: str, process_group: None) -> None:
    """FSDP2: the gradients, a step, and inference before and after it are those of the plain model."""
    mesh = init_device_mesh("cpu", (1,))
    plain, model, given = small().train(), small().train(), batch()
    for module in reversed(list(model.modules())):
        if isinstance(module, PARTS[parts]) and module is not model:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert list(model.state_dict()) == list(plain.state_dict())
    close(infer(model, given), infer(plain, given))
    found = {name: x.full_tensor() for name, x in gradients(model, given).items()}  # type: ignore[attr-defined]
    close(found, gradients(plain, given))
    for net in (plain, model):
        step(net, given)
        net.eval()
    close(infer(model, given), infer(plain, given))
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    close(dict(state), dict(plain.state_dict()))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("parts", [(), (EncoderLayer,), (EncoderLayer, Embeddings, Pooler, ErnieMModel)])
def test_fully_sharded_data_parallel(parts: tuple[type, ...], original: bool, process_group: None) -> None:
    """FSDP1, with its flat parameters and with the original ones."""
    plain, model, given = small().train(), small().train(), batch()
    policy = ModuleWrapPolicy(set(parts)) if parts else None
    sharded = FullyShardedDataParallel(
        model, auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=original
    )
    close(infer(sharded, given), infer(plain, given))
    for _ in range(2):
        for net in (plain, sharded):
            step(net, given)
    close(infer(sharded.eval(), given), infer(plain.eval(), given))
    state = sharded.state_dict()
    assert list(state) == list(plain.state_dict())
    close({name: x.detach() for name, x in state.items()}, dict(plain.state_dict()))


@pytest.mark.parametrize("cls", CLASSES)
def test_distributed_data_parallel(cls: Any, process_group: None) -> None:
    """Its search for parameters without gradients takes outputs apart."""
    plain, given = small(cls).train(), batch(cls)
    model = DistributedDataParallel(small(cls).train(), find_unused_parameters=True)
    found = {name.removeprefix("module."): x for name, x in gradients(model, given).items()}
    wanted = gradients(plain, given)
    # Parameters that take no part get a gradient of 0 there.
    close({name: found[name] for name in wanted}, wanted)
    assert not any(bool(x.any()) for name, x in found.items() if name not in wanted)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("states", [False, True])
def test_data_parallel_gathers_outputs(cls: Any, states: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On GPUs it joins the replicas' outputs; its own join refuses tensors on a CPU, so torch.cat takes its place."""

    def join(device: Any, dim: int, *tensors: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[None] if x.dim() == 0 else x for x in tensors], dim)

    monkeypatch.setattr(scatter_gather.Gather, "apply", join)
    model, given = small(cls), batch(cls)
    outputs = [model(**given, output_hidden_states=states, output_attentions=states) for _ in range(2)]
    gathered = scatter_gather.gather(outputs, "cpu")
    assert type(gathered) is type(outputs[0])
    assert list(gathered) == list(outputs[0])
    for name, value in outputs[0].items():
        parts = value if isinstance(value, tuple) else (value,)
        joined = gathered[name] if isinstance(value, tuple) else (gathered[name],)
        for part, both in zip(parts, joined, strict=True):
            wanted = torch.stack([part, part]) if part.dim() == 0 else torch.cat([part, part])
            assert torch.equal(both, wanted), name


def test_data_parallel_scatters_and_runs_on_a_cpu() -> None:
    """Without a GPU DataParallel calls the module itself."""
    model, given = small(), batch()
    close(infer(torch.nn.DataParallel(model), given), infer(model, given))


def test_an_output_is_taken_apart_by_torch_s_own_tools() -> None:
    """`tree_map`, and the hooks of DDP and FSDP, which look for tensors inside of outputs."""
    out = small()(**without_targets(batch()), output_hidden_states=True)
    doubled = tree_map(lambda x: 2 * x, out)
    assert type(doubled) is type(out)
    assert torch.equal(numbers(doubled), 2 * numbers(out))


@pytest.mark.all
@pytest.mark.parametrize("kind", ["FSDP2", "FSDP2 by layer", "FSDP1", "DDP"])
def test_two_processes(kind: str, tmp_path: Path) -> None:
    """Each has half of the batch; together they take the step that one process takes with all of it."""
    run_two("two_processes.py", kind, tmp_path)


@pytest.mark.all
@pytest.mark.parametrize("kind", ["FSDP2", "FSDP2 by layer", "DDP"])
def test_two_processes_with_unequal_counts_of_tokens_and_dropout(kind: str, tmp_path: Path) -> None:
    """Seen red: tokens counted from 0 in each process; each process's mean over its own targets."""
    run_two("unequal_processes.py", kind, tmp_path)


def run_two(program: str, kind: str, folder: Path) -> None:
    """Run a program of this folder in two processes."""
    command = [sys.executable, str(Path(__file__).with_name(program)), kind]
    workers = [
        subprocess.Popen([*command, str(rank), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(2)
    ]
    outputs = [worker.communicate(timeout=300)[0].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
