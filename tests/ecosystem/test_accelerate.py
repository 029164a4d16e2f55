"""accelerate 0.34: its loop, its checkpoints, its ways to load and to offload a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ecosystem_helpers import batch, close, copied, infer, small, without_targets
from torch.utils.data import DataLoader
from torch_models import CLASSES

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed (it comes with transformers)")

from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402
from accelerate.utils import gather_object, pad_across_processes, send_to_device  # noqa: E402

GIVEN = batch()
ROWS = [{key: x[i] for key, x in batch(B=8).items()} for i in range(8)]


@pytest.fixture(autouse=True)
def _fresh_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # torch 2.6 and later read only weights by default; accelerate 0.34 stores random generators' states beside them.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    # It collects garbage after each file, which is slow in a large process.
    monkeypatch.setattr("gc.collect", lambda *_: 0)
    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()
    yield
    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()


def prepared(model: Any, **options: Any) -> tuple[Any, Any, Any, Any]:
    """accelerator, model, optimiser, loader."""
    accelerator = accelerate.Accelerator(cpu=True, **options)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    loader = DataLoader(ROWS, batch_size=2)
    return (accelerator, *accelerator.prepare(model.train(), optimiser, loader))


def train(accelerator: Any, model: Any, optimiser: Any, loader: Any) -> list[float]:
    """One epoch; returns the losses."""
    losses = []
    for given in loader:
        with accelerator.accumulate(model):
            out = model(**given)
            accelerator.backward(out.loss)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(float(out["loss"].detach()))
    return losses


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("cls", CLASSES)
def test_save_model_keeps_every_weight(cls: Any, safe: bool, tmp_path: Path) -> None:
    """For each of its loaders, in shards too."""
    model, given = small(cls), batch(cls)
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.save_model(model, str(tmp_path), max_shard_size="20KB", safe_serialization=safe)
    assert len(list(tmp_path.glob("*.safetensors" if safe else "*.bin"))) > 1
    fresh = small(cls, seed=1)
    accelerate.load_checkpoint_in_model(fresh, str(tmp_path))
    assert all(torch.equal(x, fresh.state_dict()[name]) for name, x in model.state_dict().items())
    with accelerate.init_empty_weights():
        empty = cls(model.config, dtype=torch.float64)
    assert {x.device.type for x in empty.parameters()} == {"meta"}
    loaded = accelerate.load_checkpoint_and_dispatch(empty.eval(), str(tmp_path), device_map={"": "cpu"})
    close(infer(loaded, given), infer(model, given))


def test_a_checkpoint_of_save_pretrained_is_dispatched(tmp_path: Path) -> None:
    model = small(dtype=np.float32)
    model.save_pretrained(tmp_path)
    with accelerate.init_empty_weights():
        empty = type(model)(model.config).eval()
    loaded = accelerate.load_checkpoint_and_dispatch(empty, str(tmp_path), device_map="auto")
    assert torch.equal(infer(loaded, GIVEN), infer(model, GIVEN))


def test_save_state_resumes_where_it_stopped(tmp_path: Path) -> None:
    """Bit for bit: weights, optimiser and random generators (dropout) come back."""
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    torch.manual_seed(0)
    accelerator, *parts = prepared(small(**dropout))
    train(accelerator, *parts)
    accelerator.save_state(str(tmp_path / "state"))
    losses = train(accelerator, *parts)
    wanted = copied(accelerator.unwrap_model(parts[0]).state_dict())

    AcceleratorState._reset_state(True)
    accelerator, *parts = prepared(small(seed=3, **dropout))
    accelerator.load_state(str(tmp_path / "state"))
    assert train(accelerator, *parts) == losses
    found = accelerator.unwrap_model(parts[0]).state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(x, found[name]) for name, x in wanted.items())


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"mixed_precision": "bf16"}])
def test_its_loop_learns(options: dict[str, Any]) -> None:
    """With outputs that mixed precision converts, and metrics that it gathers."""
    accelerator, model, optimiser, loader = prepared(small(dtype=np.float32), **options)
    first = train(accelerator, model, optimiser, loader)
    for _ in range(6):
        last = train(accelerator, model, optimiser, loader)
    assert sum(last) < 0.5 * sum(first)
    model.eval()
    rows = 0
    for given in loader:
        with torch.no_grad():
            out = model(**given)
        assert type(out).__name__ == "ClassifierOutput" and out.logits.dtype == torch.float32
        logits, labels = accelerator.gather_for_metrics((out.logits, given["labels"]))
        assert accelerator.gather_for_metrics(out)["logits"].shape == logits.shape
        rows += len(labels)
    assert rows == len(ROWS)


@pytest.mark.parametrize("cls", CLASSES)
def test_outputs_pass_through_its_functions(cls: Any) -> None:
    """Each rebuilds an output from its parts, of the same class."""
    out = small(cls)(**without_targets(batch(cls)), output_hidden_states=True)
    accelerate.PartialState(cpu=True)
    for function in (lambda x: send_to_device(x, "cpu"), pad_across_processes, accelerate.utils.convert_to_fp32):
        again = function(out)
        assert type(again) is type(out) and list(again) == list(out)
    assert gather_object([1]) == [1]


@pytest.mark.parametrize("kind", ["cpu_offload", "disk_offload", "dispatch_model"])
@pytest.mark.parametrize("cls", CLASSES)
def test_offloaded_weights_are_brought_in_for_each_call(cls: Any, kind: str, tmp_path: Path) -> None:
    """Between calls the model's weights are on the meta device; a hook on each module fetches its own."""
    model, given = small(cls), batch(cls)
    wanted = infer(model, given)
    device = torch.device("cpu")
    if kind == "cpu_offload":
        accelerate.cpu_offload(model, execution_device=device)
    elif kind == "disk_offload":
        accelerate.disk_offload(model, str(tmp_path), execution_device=device)
    else:
        parts = {name: "disk" if i % 2 else "cpu" for i, (name, _) in enumerate(model.named_children())}
        accelerate.dispatch_model(
            model, device_map=parts, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True
        )
    assert kind == "dispatch_model" or {x.device.type for x in model.parameters()} == {"meta"}
    for _ in range(2):
        close(infer(model, given), wanted)


def test_a_device_map_may_cut_between_layers(tmp_path: Path) -> None:
    """As accelerate infers it from memory limits; no layer is to be cut."""
    model = small()
    wanted = infer(model, GIVEN)
    size = sum(x.numel() * x.element_size() for x in model.parameters())
    limits = {"cpu": int(0.7 * size), "disk": 10 * size}
    parts = accelerate.infer_auto_device_map(
        model, max_memory=limits, no_split_module_classes=["EncoderLayer", "Embeddings"]
    )
    assert len(set(parts.values())) == 2
    accelerate.dispatch_model(model, device_map=parts, main_device="cpu", offload_dir=str(tmp_path))
    close(infer(model, GIVEN), wanted)


def test_hooks_can_be_removed_again() -> None:
    model = small()
    wanted = infer(model, GIVEN)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    infer(model, GIVEN)
    accelerate.hooks.remove_hook_from_submodules(model)
    close(infer(model, GIVEN), wanted)
