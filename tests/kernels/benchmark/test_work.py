"""The counts of work, and the competitors: each computes the same result or reports why it cannot run."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen

from ernie_m import kernels
from ernie_m.kernels.benchmark import encoders as bench_models
from ernie_m.kernels.benchmark import gradient_workloads as bench_gradients
from ernie_m.kernels.benchmark import loss_workloads as bench_losses
from ernie_m.kernels.benchmark import training_steps as bench_steps
from ernie_m.kernels.benchmark import work as bench_cases
from ernie_m.kernels.benchmark import workloads as bench_operations
from ernie_m.kernels.benchmark.baselines import pin_varlen
from ernie_m.kernels.benchmark.runner import differences
from ernie_m.kernels.benchmark.timing import Call, Missing, Timing, first_line
from ernie_m.kernels.benchmark.work import BATCHES, SIZES, Batch, Size, Work

TINY = Size(layers=1, hidden=128, intermediate=64)
HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None
RAGGED, DENSE = Batch("3 rows", (5, 1, 3), 5), Batch("2 x 4", (4, 4), 4)

# Per layer in bfloat16: GFLOP and MB of the products and of attention, MB of GELU and of both add + LayerNorm.
# Dense: T = 32,768, Σn² = 64 x 512². Products: 2 T (4 E² + 2 E F) operations, 2 (8 T E + 2 T F + 4 E² + 2 E F) bytes.
BY_HAND = {
    ("base", "dense"): (463.856, 819.46, 51.540, 201.33, 402.66, 302.0),
    ("base", "ragged"): (115.964, 215.48, 5.005, 50.33, 100.67, 75.5),
    ("large", "dense"): (824.634, 1098.91, 68.719, 268.44, 536.88, 402.7),
    ("large", "ragged"): (206.158, 293.60, 6.673, 67.11, 134.23, 100.7),
}


def outcome(calls: dict[str, Call]) -> dict[str, Timing | Missing]:
    """Call each competitor once; the times are fake."""
    found: dict[str, Timing | Missing] = {}
    for name, call in calls.items():
        try:
            call(0)
            found[name] = Timing(1e-3, 1e-3, 1e-3, 1)
        except Exception as error:
            found[name] = Missing(first_line(error))
    return found


@pytest.mark.parametrize(("size", "batch"), BY_HAND)
def test_counts_equal_those_done_by_hand(size: str, batch: str) -> None:
    flops, moved, attention, attention_moved, gelu, norms = BY_HAND[size, batch]
    s, b = SIZES[size], BATCHES[batch]
    products = [work for _, work in bench_cases.products(s, b.tokens, 2)]
    assert sum(work.flops for work in products) == pytest.approx(flops * 1e9, rel=1e-5)
    assert sum(work.bytes for work in products) == pytest.approx(moved * 1e6, rel=1e-4)
    work = bench_cases.packed_attention(s, b, 2)
    assert work.flops == pytest.approx(attention * 1e9, rel=1e-3)
    assert work.bytes - 4 * s.heads * b.tokens == pytest.approx(attention_moved * 1e6, rel=1e-4)  # without log-sum-exps
    assert bench_cases.bias_gelu(s, b.tokens, 2).bytes == pytest.approx(gelu * 1e6, rel=1e-3)
    assert 2 * bench_cases.add_layer_norm(s, b.tokens, 2).bytes == pytest.approx(norms * 1e6, rel=3e-3)


def test_counts_of_gradients() -> None:
    """Base, 8 x 128, bfloat16: three of (T, F); five of (T, E); two and indices; tables of 250,516 rows."""
    size, batch = SIZES["base"], BATCHES["small"]
    assert bench_cases.bias_gelu_vjp(size, 1024, 2).bytes == (3 * 1024 + 2) * 3072 * 2
    assert bench_cases.add_layer_norm_vjp(size, 1024, 2).bytes == (5 * 1024 + 5) * 768 * 2
    assert bench_cases.dropped_layer_norm_vjp(size, 1024, 2).bytes == (5 * 1024 + 5) * 768 * 2 + 8 * 1024
    assert bench_cases.dropout_vjp(size, 1024, 2).bytes == 2 * 1024 * 768 * 2 + 8 * 1024
    rows = 2 * 1024 + 128 + 250_002 + 514 + 3
    assert bench_cases.embed_vjp(size, batch, 2).bytes == rows * 768 * 2 + 16 * 1024
    loss = bench_cases.linear_cross_entropy_vjp(size, 1024, 2)
    # 147 rows have a label; table and bias, and their gradients.
    assert loss == Work(3 * 2 * 147 * 250_002 * 768, 2 * 1024 * 768 * 2 + 2 * 250_002 * 769 * 2 + 8 * 1024)


def test_counts_of_pairs() -> None:
    """40 tokens, 3 of each side masked: 17 x (17 + 3) scores and 3 more, twice; masked in all 43 % of 40² or less."""
    assert bench_cases.pair_of(40) == (17, 3, 17, 3)
    assert bench_cases.group_scores(Batch("1 x 40", (40,), 40)) == 2 * (17 * 20 + 3)
    assert all(sum(bench_cases.pair_of(n)) == n for n in range(1, 600))
    size, batch = SIZES["base"], BATCHES["small"]
    forward, backward = (f(size, batch, 2) for f in (bench_cases.group_attention, bench_cases.group_attention_vjp))
    assert forward.flops == 4 * 768 * bench_cases.group_scores(batch) and backward.flops == 3.5 * forward.flops
    assert forward.bytes == bench_cases.packed_attention(size, batch, 2).bytes


def test_embed_counts_the_rows_of_its_tokens() -> None:
    # 128 rows of 768 in both tables and the result, gamma and beta; two 8-byte ids per token.
    assert bench_cases.embed(SIZES["base"], BATCHES["one"], 2).bytes == (3 * 128 + 2) * 768 * 2 + 128 * 16


@pytest.mark.parametrize(
    ("size", "batch", "milliseconds"),
    [("base", "dense", 9.8), ("base", "ragged", 2.4), ("large", "dense", 32.4), ("large", "ragged", 7.96)],
)
def test_a_models_floor_is_the_sum_of_its_steps(size: str, batch: str, milliseconds: float) -> None:
    """At 790 TFLOP/s and 4.3 TB/s, compared with values calculated by hand."""
    floor = bench_cases.model_floor(SIZES[size], BATCHES[batch], 2, 790e12, 4.3e12)
    assert floor * 1e3 == pytest.approx(milliseconds, rel=5e-3)
    # With an infinite copy rate, only the products and attention count.
    flops, _, attention, *_ = BY_HAND[size, batch]
    floor = bench_cases.model_floor(SIZES[size], BATCHES[batch], 2, 1e12, float("inf"))
    assert floor == pytest.approx(SIZES[size].layers * (flops + attention) * 1e-3, rel=1e-4)


def test_the_floor_without_layers_is_that_of_the_embeddings() -> None:
    # (2 x 8192 + 512 + 2) rows of 768 in bfloat16, and two 8-byte ids per token.
    floor = bench_cases.model_floor(Size(0, 768, 3072), BATCHES["ragged"], 2, 1e12, 1e9)
    assert floor == pytest.approx((16_898 * 1536 + 8192 * 16) * 1e-9)


def test_ragged_lengths_match_their_description() -> None:
    ragged = BATCHES["ragged"]
    assert (len(ragged.lengths), ragged.tokens, max(ragged.lengths), ragged.ragged) == (64, 64 * 128, 512, True)
    assert ragged.pairs == 1_629_172
    assert (ragged.pairs / 64 / 128**2 - 1) ** 0.5 == pytest.approx(0.75, abs=0.01)  # standard deviation over mean
    assert not BATCHES["dense"].ragged
    for seed in range(20):
        lengths = bench_cases.ragged_lengths(7, 20, 30, seed)
        assert sum(lengths) == 140
        assert min(lengths) >= 4
        assert max(lengths) <= 30


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small vocabulary, and a torch.compile that returns the function unchanged."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(bench_operations, "VOCABULARY", 50)
    monkeypatch.setattr(bench_gradients, "VOCABULARY", 50)
    monkeypatch.setattr(bench_losses, "VOCABULARY", 50)
    monkeypatch.setattr(bench_losses, "CHUNK", 2)  # of two labels and of one, so that chunks differ
    monkeypatch.setattr(bench_cases, "VOCABULARY", 50)
    torch.manual_seed(0)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("batch", [RAGGED, DENSE], ids=["ragged", "dense"])
@pytest.mark.parametrize("what", bench_operations.WORKLOADS)
def test_competitors_compute_the_same_operation(what: str, batch: Batch) -> None:
    made = bench_operations.WORKLOADS[what](TINY, batch, torch.float32, "cpu")
    found = outcome(made.calls)
    missing = {name for name, t in found.items() if isinstance(t, Missing)}
    # On a CPU torch has neither packed attention nor the cuDNN and efficient backends, and may lack flash.
    # Some versions have no linear cross-entropy either.
    assert missing <= {"torch varlen", "SDPA cuDNN", "SDPA efficient", "SDPA flash", "torch, chunked"}
    assert isinstance(found["ours"], Timing), found["ours"]
    others = {
        "packed_attention": {"SDPA math"},
        "packed_attention_vjp": {"SDPA, padded"},
        "group_attention": {"SDPA, padded"},
        "group_attention_vjp": {"SDPA, padded"},
        "first_token_attention_vjp": {"SDPA, padded"},
        "first_token_attention": {"SDPA, padded", "SDPA, padded, compile"},
        "linear_cross_entropy_vjp": {"eager", "compile", "eager, chunked", "compile, chunked"},
        "dropout_vjp": {"eager, mask kept"},
        "dropped_layer_norm_vjp": {"eager, mask kept", "compile, mask kept"},
    }.get(what, {"eager", "compile"})
    apart = differences(made, found)
    assert apart.keys() >= others
    assert apart.keys() == found.keys() - missing - {"ours"}
    assert all(x < 1e-6 for x in apart.values()), apart
    # Inputs rotate: the next call uses other numbers.
    first, second, third = (made.packed("ours", made.calls["ours"](i)) for i in range(3))
    assert not torch.equal(first, second)
    assert torch.equal(first, third)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("what", ["packed_attention_vjp", "group_attention_vjp", "first_token_attention_vjp"])
def test_padded_gradients_are_timed_without_steps_of_their_own(what: str) -> None:
    """They neither select by a mask, which synchronises, nor fill a tensor for each of q, k and v. Seen red with both:
    `[valid]` in the timed call, and `x[0]` where it unbinds now."""
    made = bench_operations.WORKLOADS[what](TINY, RAGGED, torch.float32, "cpu")
    with torch.profiler.profile() as profile:
        made.calls["SDPA, padded"](0)
    assert not {"aten::nonzero", "aten::select_backward"} & {event.key for event in profile.key_averages()}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_encoders_compute_the_same_or_report_why_not(dtype: torch.dtype) -> None:
    """Seen red: transformers' model with a pooler without weights, a baseline's own weights, positions from 0."""
    made = bench_models.encoder(TINY, RAGGED, dtype, "cpu")
    found = outcome(made.calls)
    missing = {name for name, t in found.items() if isinstance(t, Missing)}
    # These report that they need a GPU; transformers is not available for every Python version.
    without = set() if HAS_TRANSFORMERS else {name for name in found if name.startswith("transformers")}
    assert missing == {"compile + torch varlen, packed", "ours, packed, CUDA graph"} | without
    apart = differences(made, found)
    assert apart.keys() == found.keys() - missing - {"ours, packed"}
    assert all(x < (1e-6 if dtype == torch.float32 else 0.02) for x in apart.values()), apart
    autocast = set() if dtype == torch.float32 else {"transformers, autocast bfloat16"}
    assert {name for name in found if name.startswith("transformers")} == {"transformers, float32"} | autocast
    assert made.uncounted == {"ours, packed, CUDA graph", "compile + SDPA, reduce-overhead"}
    parameters = 50 * 128 + 514 * 128 + 2 * 128 + 4 * 128 * 129 + 128 * 64 + 64 + 64 * 128 + 128 + 4 * 128
    assert made.held == parameters * dtype.itemsize


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("dtype", "batch"), [(torch.float32, RAGGED), (torch.bfloat16, DENSE)])
def test_training_steps_compute_the_same_gradients(
    dtype: torch.dtype, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own packed attention needs a GPU: ours replaces it here, so that everything around it is tested.

    Seen red: labels at other places, the mean over all rows, a baseline without the transform.
    """
    monkeypatch.setattr(varlen, "varlen_attn", packed_on_a_cpu)
    made = bench_steps.training_step(TINY, batch, dtype, "cpu")
    found = outcome(made.calls)
    assert all(isinstance(t, Timing) for t in found.values()), found
    apart = differences(made, found)
    assert apart.keys() == found.keys() - {"ours, packed"} and len(apart) == 4
    assert all(x < (1e-6 if dtype == torch.float32 else 0.02) for x in apart.values()), apart
    gradients = made.calls["ours, packed"](0)
    assert len(gradients) == 2 + 2 + 16 + 5 and all(x.abs().sum() > 0 for x in list(gradients.values())[:4])
    assert not torch.equal(*(made.packed("", made.calls["ours, packed"](i)) for i in range(2)))


def packed_on_a_cpu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu: torch.Tensor, *rest: Any) -> torch.Tensor:
    context = kernels.packed_attention(torch.stack([q, k, v], dim=1), cu)
    assert isinstance(context, torch.Tensor)
    return context


def test_a_training_steps_floor_adds_the_backward_and_the_loss() -> None:
    """With an infinite copy rate: three times the products, 3.5 times attention, and the loss's three products."""
    size, batch = SIZES["base"], BATCHES["ragged"]
    flops, _, attention, *_ = BY_HAND["base", "ragged"]
    loss = 6 * -(-8192 // 7) * 768 * 250_002 * 1e-12
    floor = bench_cases.training_floor(size, batch, 2, 1e12, float("inf"))
    assert floor == pytest.approx(12 * (3 * flops + 3.5 * attention) * 1e-3 + loss, rel=1e-4)
    # With an infinite matrix rate, more bytes than the forward's and the gradients of the word table.
    moved = bench_cases.training_floor(size, batch, 2, float("inf"), 1.0)
    assert moved > 3 * bench_cases.model_floor(size, batch, 2, float("inf"), 1.0)


def test_torchs_packed_attention_is_pinned_to_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "_should_use_cudnn", lambda device_index: True)
    assert pin_varlen() == "flash" and varlen._should_use_cudnn(0) is False
    monkeypatch.delattr(varlen, "_should_use_cudnn")
    assert pin_varlen() == "torch's choice" and not hasattr(varlen, "_should_use_cudnn")


@pytest.mark.usefixtures("small")
def test_without_padding_eager_adds_a_mask_and_sdpa_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers always adds one; SDPA is faster without."""
    masks: dict[str, list[bool]] = {"eager": [], "sdpa": []}
    forward = bench_models.PaddedEncoder.forward

    def watched(self: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        masks[self.layers[0].attend].append(mask is not None)
        return forward(self, ids, mask)

    monkeypatch.setattr(bench_models.PaddedEncoder, "forward", watched)
    for batch in (DENSE, RAGGED):
        made = bench_models.encoder(TINY, batch, torch.float32, "cpu")
        for name in ("eager, padded", "compile + SDPA, padded"):
            made.calls[name](0)
    assert masks == {"eager": [True, True], "sdpa": [False, True]}


@pytest.mark.usefixtures("small")
def test_a_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    made = bench_models.encoder(TINY, DENSE, torch.float32, "cpu")
    found = outcome({"original": made.calls["transformers, float32"]})["original"]
    assert isinstance(found, Missing)
    assert found.why.startswith("ModuleNotFoundError: import of transformers halted")


def test_many_tokens_get_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(bench_cases, "VOCABULARY", 50)
    monkeypatch.setattr(bench_models, "GRAPH_TOKENS", 8)
    made = [bench_models.encoder(TINY, batch, torch.float32, "cpu") for batch in (DENSE, RAGGED)]
    assert [bool(case.uncounted) for case in made] == [True, False]
    assert [sum("graph" in name for name in case.calls) for case in made] == [1, 0]
