"""Training as the reference does: with the same seeds the same is dropped, so losses, gradients and steps are equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import ids_like, masks
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rounding import MODEL_BOUND, U32
from torch._dynamo.testing import CompileCounterWithBackend
from torch_models import CLASSES, IGNORED, arrays_of, tensors, way
from training_pairs import MASKS, RATES, RIGHT, batch_of, by_name, models, seeds_of

from ernie_m.kernels import dropout, dropped_layer_norm, dropped_layer_norm_backward
from ernie_m.kernels.dropout import seed_tensor
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.reference import compare, trace
from ernie_m.reference.checkpoint.names import HUGGINGFACE, PREFIX, file_name
from ernie_m.reference.dropout import draw_seeds
from ernie_m.reference.gradients import value_and_gradients, value_and_vjp
from ernie_m.reference.parameters import flatten, unflatten
from ernie_m.reference.training import adamw_start, adamw_step, decays, warmup_then_linear

HEADS = CLASSES[1:]
# In float64, relative to the largest number: outputs, gradients, and parameters after 20 steps.
OUTPUT, GRADIENT, STEPS = 1e-12, 1e-10, 1e-9


def assert_close(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float) -> None:
    """The same names, and numbers as close as `tolerance` times the largest of all; padded logits aside."""
    assert sorted(ours) == sorted(theirs)
    finite = [np.abs(x[np.abs(x) < 1e30]).max(initial=0.0) for x in theirs.values()]
    for name, x in theirs.items():
        atol = tolerance * max(1.0, *finite)
        np.testing.assert_allclose(ours[name], x, rtol=tolerance, atol=atol, err_msg=name)


def gradients_of(model: Any) -> dict[str, np.ndarray]:
    """By name; 0 for what does not take part, such as a pooler that a head does not read."""
    zero = {name: np.zeros(x.shape) for name, x in model.named_parameters()}
    found = {name: x.grad.numpy().copy() for name, x in model.named_parameters() if x.grad is not None}
    found = {name: found.get(name, zero[name]) for name in zero}
    model.zero_grad()
    return found


def assert_trains_alike(
    cls: Any, twin: Any, model: Any, batch: dict[str, Any], seed: int, compiled: Any = None, **options: Any
) -> None:
    """Outputs, loss and every gradient of a call with dropout, of `model` or of `compiled`, made from it."""
    expected, wanted = value_and_gradients(twin, **batch, **options, rng=np.random.default_rng(seed))
    call = model if compiled is None else compiled
    out = call(**tensors(batch), **tensors(options), dropout_seeds=seeds_of(twin, seed))
    assert_close(arrays_of(out), arrays_of(expected), OUTPUT)
    out.loss.backward()
    assert_close(gradients_of(model), by_name(wanted, cls), GRADIENT)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("cls", HEADS)
def test_losses_and_gradients_equal_the_references(cls: Any, kind: str) -> None:
    """Packed here, and in the reference. Seen red: each of the dropouts left out, or with its neighbour's seed; tokens
    counted with padding; queries of a group of equal length counted in the group's order."""
    twin, model = models(cls)
    assert_trains_alike(cls, twin, model, batch_of(cls, MASKS[kind]), 5)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("cls", HEADS)
def test_the_rectangle_drops_what_the_packed_batch_drops(cls: Any, kind: str) -> None:
    """Attention maps need it, in both rooms. Seen red: keys counted by their column where there are holes."""
    twin, model = models(cls)
    batch = batch_of(cls, MASKS[kind])
    assert_trains_alike(cls, twin, model, batch, 6, output_attentions=True)
    seeds = seeds_of(twin, 6)
    packed, padded = (model(**tensors(batch), dropout_seeds=seeds, output_attentions=x).loss for x in (False, True))
    torch.testing.assert_close(packed, padded, rtol=OUTPUT, atol=OUTPUT)


@pytest.mark.parametrize("kind", MASKS)
def test_every_traced_value_equals_the_references(kind: str) -> None:
    """While a trace records, the packed batch attends on a rectangle, and drops the same there too."""
    twin, model = models(CLASSES[1])
    batch = batch_of(CLASSES[1], MASKS[kind])
    with trace() as theirs:
        twin(**batch, rng=np.random.default_rng(7))
    with trace() as ours:
        model(**tensors(batch), dropout_seeds=seeds_of(twin, 7))
    found = compare(theirs, ours, MASKS[kind], tolerance=MODEL_BOUND)
    assert found and set(found.errors) == set(theirs) == set(ours), found


@settings(max_examples=60)
@given(
    st.sampled_from(HEADS),
    masks(lengths=(1, 2, 7)),
    st.sampled_from([{}, {0: [1]}, {0: [0, 2], 1: [1]}]),
    st.tuples(*(st.sampled_from([0.0, 0.3, 0.9]) for _ in range(3)), st.sampled_from([None, 0.0, 0.3])),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_any_configuration_trains_as_the_reference(
    cls: Any, mask: np.ndarray, pruned: dict[int, list[int]], rates: tuple[Any, ...], seed: int, data: st.DataObject
) -> None:
    """Rates, pruned heads, masks of two and three axes, head masks, vectors in place of ids, hidden states."""
    assume(mask.any())
    twin, model = models(cls, seed % 7, **dict(zip(RATES, rates, strict=True)), pruned_heads=pruned)
    rng, batch, options = np.random.default_rng(seed), batch_of(cls, mask, seed % 100), {}
    if "Choice" not in cls.__name__ and data.draw(st.booleans(), "pairs"):
        B, S = mask.shape
        batch["attention_mask"] = (rng.random((B, S, S)) < 0.8) & (mask[:, None, :] == 1)
        assume(batch["attention_mask"].any())
    if data.draw(st.booleans(), "vectors"):
        batch["inputs_embeds"] = twin.parameters.word_embeddings[batch.pop("input_ids")]
    if data.draw(st.booleans(), "head mask"):
        options["head_mask"] = rng.random((2, 3))
    options["output_hidden_states"] = data.draw(st.booleans(), "states")
    with np.errstate(invalid="ignore"):
        expected = twin(**batch, **options, rng=np.random.default_rng(seed))
    assume(np.isfinite(expected.loss))
    if "inputs_embeds" in batch:
        # The table is a parameter of the reference, whose gradient is 0; torch's is absent.
        model.get_input_embeddings().weight.grad = torch.zeros_like(model.get_input_embeddings().weight)
    assert_trains_alike(cls, twin, model, batch, seed, **options)


def test_the_bare_model_trains_as_the_reference() -> None:
    """With cotangents of both outputs; from a padded and from a packed call."""
    cls = CLASSES[0]
    twin, model = models(cls)
    mask = MASKS["right"]
    ids, valid, rng = ids_like(mask), mask.astype(bool), np.random.default_rng(0)
    cotangents = {"last_hidden_state": rng.standard_normal((4, 5, 24)), "pooler_output": rng.standard_normal((4, 24))}
    expected, wanted = value_and_vjp(twin, cotangents, ids, attention_mask=mask, rng=np.random.default_rng(1))
    d_hidden, d_pooled = (torch.tensor(x) for x in cotangents.values())
    cu, seeds = torch.tensor([0, 5, 7, 10, 14], dtype=torch.int32), seeds_of(twin, 1)
    for packed in (False, True):
        if packed:
            out = model.packed(torch.tensor(ids[valid]), cu, 5, dropout_seeds=seeds)
            hidden = torch.zeros(4, 5, 24, dtype=torch.float64)
            hidden[torch.tensor(valid)] = out.last_hidden_state
        else:
            out = model(torch.tensor(ids), attention_mask=torch.tensor(mask), dropout_seeds=seeds)
            hidden = out.last_hidden_state
        found = {"last_hidden_state": hidden, "pooler_output": out.pooler_output}
        assert_close({name: x.detach().numpy() for name, x in found.items()}, arrays_of(expected), OUTPUT)
        torch.autograd.backward([hidden, out.pooler_output], [d_hidden * torch.tensor(mask)[..., None], d_pooled])
        assert_close(gradients_of(model), by_name(wanted, cls), GRADIENT)


def parts(cls: Any, mask: np.ndarray, rows: slice) -> tuple[dict[str, Any], int]:
    """Some rows of the batch, and the index of their first token."""
    batch = batch_of(cls, mask)
    return {name: x[rows] for name, x in batch.items()}, int(mask[: rows.start].sum())


@pytest.mark.parametrize("attentions", [False, True])
def test_first_token_places_a_part_in_the_whole_batch(attentions: bool) -> None:
    """Two halves with unequal counts of tokens give the rows of the whole; without the offset they do not."""
    cls = CLASSES[3]
    twin, model = models(cls)
    seeds, logits = seeds_of(twin, 2), []
    whole = model(**tensors(batch_of(cls, RIGHT)), dropout_seeds=seeds, output_attentions=attentions).logits
    for rows in (slice(0, 1), slice(1, 4)):
        batch, first = parts(cls, RIGHT, rows)
        options = {"dropout_seeds": seeds, "output_attentions": attentions}
        logits.append(model(**tensors(batch), **options, first_token=first).logits)
    torch.testing.assert_close(torch.cat(logits), whole, rtol=OUTPUT, atol=OUTPUT)
    assert not torch.allclose(model(**tensors(batch), **options).logits, whole[1:])


def test_seeds_are_ignored_in_eval_mode_and_by_parts_that_do_not_train() -> None:
    """A frozen encoder in `eval()` mode below a head in `train()` mode, and the other way round."""
    cls = CLASSES[1]
    twin, model = models(cls)
    batch, seeds = batch_of(cls, RIGHT), seeds_of(twin, 0)
    plain = model.eval()(**tensors(batch)).logits
    assert torch.equal(model(**tensors(batch), dropout_seeds=seeds).logits, plain)
    model.train().ernie_m.eval()
    head = model(**tensors(batch), dropout_seeds=seeds).logits
    model.train().training = False
    body = model(**tensors(batch), dropout_seeds=seeds).logits
    for found, own in ((head, {"classifier_dropout": 0.4}), (body, {**RATES, "classifier_dropout": 0.0})):
        rates = {**dict.fromkeys(RATES, 0.0), **own}
        other = type(twin)(twin.config.replace(**rates), twin.parameters)
        expected = other(**batch, rng=np.random.default_rng(0)).logits
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=OUTPUT, atol=OUTPUT)
    assert not torch.equal(head, plain) and not torch.equal(body, plain)


def test_seeds_are_drawn_from_torchs_generator() -> None:
    """All at once, so that a call is repeated by the generator's state or by the seeds."""
    cls = CLASSES[1]
    model, batch = models(cls)[1], tensors(batch_of(cls, RIGHT))
    torch.manual_seed(3)
    drawn, after = model(**batch).logits, torch.random.get_rng_state()
    torch.manual_seed(3)
    seeds = torch.randint(0, 2**32, (2, 10))
    assert torch.equal(torch.random.get_rng_state(), after)
    assert torch.equal(model(**batch, dropout_seeds=seeds[0] | (seeds[1] << 32)).logits, drawn)
    assert not torch.equal(model(**batch).logits, drawn)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dropout_seeds": [1]}, TypeError, "dropout_seeds: expected a torch.Tensor, got list"),
        ({"dropout_seeds": torch.zeros(10)}, TypeError, "dropout_seeds: expected torch.int64, got torch.float32"),
        ({"dropout_seeds": torch.arange(9)}, ValueError, r"dropout_seeds: .* \(4 L \+ 2,\) = \(10,\), got \(9,\)"),
        ({"dropout_seeds": torch.arange(10).to("meta")}, ValueError, "dropout_seeds: expected a tensor on cpu"),
        ({"first_token": -1}, ValueError, "first_token: expected an integer of at least 0, got -1"),
        ({"first_token": 0.5}, TypeError, "first_token: expected an integer of at least 0, got float 0.5"),
    ],
)
def test_options_of_dropout_are_checked(options: dict[str, Any], error: Any, message: str) -> None:
    _, model = models(CLASSES[0])
    for call in (model, model.eval()):
        with pytest.raises(error, match=message):
            call(torch.tensor([[1, 2]]), **options)
    with pytest.raises(error, match=message):
        model.packed(torch.tensor([1, 2]), torch.tensor([0, 2], dtype=torch.int32), 2, **options)


@pytest.mark.parametrize("options", [{"use_reentrant": False}, {"use_reentrant": True}])
@pytest.mark.parametrize("cls", HEADS)
def test_layers_computed_again_drop_the_same(cls: Any, options: dict[str, bool]) -> None:
    """Bitwise, also without the generator's state, which they do not read."""
    twin, model = models(cls)
    batch, seeds, found = tensors(batch_of(cls, RIGHT)), seeds_of(twin, 4), []
    for kwargs in (None, {**options, "preserve_rng_state": False}):
        if kwargs is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        model(**batch, dropout_seeds=seeds).loss.backward()
        found.append(gradients_of(model))
    assert_close(found[1], found[0], 0.0)


@pytest.mark.parametrize("cls", [pytest.param(HEADS[1], marks=pytest.mark.all), HEADS[2]])
def test_a_compiled_step_drops_the_same(cls: Any) -> None:
    """In one graph, which serves other seeds and other lengths too."""
    twin, model = models(cls, num_hidden_layers=1)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for seed, kind in enumerate(("right", "holes", "none")):
        batch = batch_of(cls, MASKS[kind], seed)
        assert_trains_alike(cls, twin, model, batch, seed, compiled)
    assert counter.frame_count == 1


def exactly_zero(name: str, cls: Any) -> bool:
    """Whether a parameter's gradient is 0 in exact arithmetic: it adds the same number to all scores of a softmax."""
    return name.endswith("k_proj.bias") or name in IGNORED.get(cls.__name__, ())


LEARNING_RATES = [3e-3 * warmup_then_linear(i, 4, 22) for i in range(20)]


def batches_of(cls: Any) -> list[dict[str, Any]]:
    """With other lengths at each step."""
    return [batch_of(cls, MASKS[list(MASKS)[i % len(MASKS)]], i) for i in range(len(LEARNING_RATES))]


def names_of(cls: Any, arrays: Any) -> dict[str, str]:
    """The torch model's name of each path."""
    prefix = "" if cls is CLASSES[0] else PREFIX
    return {path: file_name(path, HUGGINGFACE, prefix) for path in arrays}


def reference_steps(cls: Any, twin: Any) -> dict[str, np.ndarray]:
    """The reference's parameters after 20 steps of AdamW with dropout, a schedule and weight decay."""
    arrays, rng, state = flatten(twin.parameters), np.random.default_rng(0), None
    for rate, batch in zip(LEARNING_RATES, batches_of(cls), strict=True):
        _, gradients = value_and_gradients(type(twin)(twin.config, unflatten(arrays)), **batch, rng=rng)
        found = flatten(gradients)
        state = adamw_start({path: arrays[path] for path in found}) if state is None else state
        moved, state = adamw_step({path: arrays[path] for path in found}, found, state, rate, weight_decay=0.1)
        arrays |= moved
    return arrays


def torch_steps(cls: Any, twin: Any) -> dict[str, np.ndarray]:
    """The same with a torch model and torch's AdamW, by the same paths."""
    model, rng = cls.from_reference(twin).train(), np.random.default_rng(0)
    names, own = names_of(cls, flatten(twin.parameters)), dict(model.named_parameters())
    groups = [
        {"params": [own[name] for path, name in names.items() if decays(path) == x], "weight_decay": 0.1 * x}
        for x in (True, False)
    ]
    optimiser = torch.optim.AdamW(groups, lr=1.0)
    for rate, batch in zip(LEARNING_RATES, batches_of(cls), strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        seeds = seed_tensor(draw_seeds(rng, twin.config.num_hidden_layers))
        batch = {name: x.astype(twin.dtype) if x.dtype == np.float64 else x for name, x in batch.items()}
        model(**tensors(batch), dropout_seeds=seeds).loss.backward()
        for x in own.values():
            # A pooler that the head does not read has a gradient of 0 in the reference, and decays.
            x.grad = torch.zeros_like(x) if x.grad is None else x.grad
        optimiser.step()
    return {path: own[name].detach().numpy() for path, name in names.items()}


@pytest.mark.parametrize("cls", HEADS)
def test_twenty_steps_of_adamw_equal_the_references(cls: Any) -> None:
    """In float64, every parameter by name.

    Where the exact gradient is 0, AdamW turns rounding errors into steps of up to the learning rate. Seen red: seeds
    used twice; decay of biases.
    """
    twin = models(cls)[0]
    ours, theirs = torch_steps(cls, twin), reference_steps(cls, twin)
    for path, name in names_of(cls, theirs).items():
        atol = sum(LEARNING_RATES) if exactly_zero(name, cls) else STEPS
        np.testing.assert_allclose(ours[path], theirs[path], rtol=0, atol=atol, err_msg=path)


@pytest.mark.all
@pytest.mark.skipif(not INTERPRETED, reason="the model is on the CPU, where kernels run only in the interpreter")
@pytest.mark.parametrize("cls", [HEADS[0], HEADS[2], HEADS[-1]])
def test_twenty_steps_on_the_kernels_are_as_close_as_in_plain_torch(cls: Any) -> None:
    """float32 against the reference in float64, parameter by parameter: by rms, twice the larger error of plain torch
    and of the reference in float32, and 16 u of the parameter's own size and of the way that it went.
    """
    twin = models(cls, hidden_size=32, num_attention_heads=2)[0].astype(np.float32)
    exact = reference_steps(cls, twin.astype(np.float64))
    ours = torch_steps(cls, twin)
    with way("without kernels"), torch.enable_grad():
        plain = torch_steps(cls, twin)
    reference = reference_steps(cls, twin)

    def rms(x: np.ndarray) -> float:
        return float(np.sqrt(np.square(x).mean()))

    for path, name in names_of(cls, exact).items():
        truth, before = exact[path], flatten(twin.parameters)[path]
        if exactly_zero(name, cls):
            assert np.abs(ours[path] - truth).max() <= sum(LEARNING_RATES)
            continue
        own, *others = (rms(x[path] - truth) for x in (ours, plain, reference))
        assert own <= 2 * max(others) + 16 * U32 * (rms(truth) + rms(truth - before)), (path, own, others)


@pytest.mark.skipif(not INTERPRETED, reason="the model is on the CPU, where kernels run only in the interpreter")
def test_the_kernel_drops_the_same_in_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 where kernels run: one with dropout is launched at each place, forward and backward.

    The error of the loss and of each gradient against float64 is at most twice that of the reference in float32, and
    16 u of the largest. An element dropped here and not there would cost thousands of times as much.
    """
    cls = CLASSES[1]
    twin = models(cls)[0].astype(np.float32)
    model, batch, launched = cls.from_reference(twin).train(), batch_of(cls, RIGHT), []
    original = dropout.launch
    for page in (dropout, dropped_layer_norm, dropped_layer_norm_backward):
        monkeypatch.setattr(page, "launch", lambda *a, **k: (launched.append(1), original(*a, **k)))
    found = []
    for one in (twin.astype(np.float64), twin):
        output, gradients = value_and_gradients(one, **batch, rng=np.random.default_rng(8))
        found.append(by_name(gradients, cls) | {"loss": output.loss})
    out = model(**tensors(batch), dropout_seeds=seeds_of(twin, 8))
    out.loss.backward()
    assert len(launched) == 2 * (1 + 3 * 2 + 1)
    ours = gradients_of(model) | {"loss": out.loss.detach().numpy()}
    exact, reference = found
    largest = max(1.0, *(float(np.abs(x).max()) for x in exact.values()))
    for name, truth in exact.items():
        errors = [float(np.abs(x[name] - truth).max()) for x in (ours, reference)]
        assert errors[0] <= 2 * errors[1] + 16 * U32 * largest, name


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_and_autocast_drop_the_same(half: torch.dtype, autocast: bool) -> None:
    """Close to float64 with the same seeds; farther by far with others. The same bits each time."""
    cls = CLASSES[3]
    twin, exact = models(cls)
    batch, seeds = tensors(batch_of(cls, RIGHT)), seeds_of(twin, 9)
    model = cls.from_reference(twin, dtype=torch.float32 if autocast else half).train()
    real = batch["attention_mask"] == 1
    wanted, other = (exact(**batch, dropout_seeds=x).logits[real].detach() for x in (seeds, seeds + 1))
    found = []
    for _ in range(2):
        with torch.autocast("cpu", half, enabled=autocast):
            out = model(**batch, dropout_seeds=seeds)
        out.loss.backward()
        assert all(np.isfinite(x).all() for x in half_gradients(model))
        found.append(out.logits[real].detach())
    assert torch.equal(*found)
    distances = [float((found[0].double() - x).square().mean().sqrt()) for x in (wanted, other)]
    assert 10 * distances[0] < distances[1]


def half_gradients(model: Any) -> list[np.ndarray]:
    found = [x.grad.float().numpy() for x in model.parameters() if x.grad is not None]
    model.zero_grad()
    return found
