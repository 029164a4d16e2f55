"""Groups of sequences on threads: how they are chosen, that threads change no bit, and that BLAS's limits come back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.reference import ErnieMConfig, ErnieMModel, groups, trace
from ernie_m.reference.groups import LEAST_TOKENS, groups_of, join, on_threads, split

lengths_of_batches = st.lists(st.integers(0, 600), min_size=1, max_size=40)


def blas_threads() -> list[int]:
    return [x["num_threads"] for x in threadpoolctl.threadpool_info() if x["user_api"] == "blas"]


@pytest.fixture(scope="module")
def model() -> ErnieMModel:
    config = ErnieMConfig(
        vocab_size=50, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80
    )
    return ErnieMModel.from_config(config, seed=1)


@pytest.fixture
def four_threads() -> Iterator[None]:
    with threadpoolctl.threadpool_limits(4, user_api="blas"):
        yield


def batch(lengths: list[int], width: int | None = None) -> dict[str, np.ndarray]:
    mask = np.arange(max(max(lengths), width or 1)) < np.array(lengths)[:, None]
    ids = np.random.default_rng(len(lengths)).integers(2, 50, mask.shape)
    return {"input_ids": np.where(mask, ids, 1), "attention_mask": mask.astype(np.int64)}


@given(lengths_of_batches)
def test_groups_are_a_balanced_partition(lengths: list[int]) -> None:
    chosen = groups_of(lengths)
    assert sorted(b for group in chosen for b in group) == list(range(len(lengths)))
    assert all(group == sorted(group) for group in chosen)
    sizes = [sum(lengths[b] for b in group) for group in chosen]
    # Whoever got the last sequence was the smallest before.
    assert max(sizes) - min(sizes) <= max(lengths)
    assert len(chosen).bit_count() == 1
    assert len(chosen) == 1 or sum(lengths) >= len(chosen) * LEAST_TOKENS
    assert 2 * len(chosen) > np.count_nonzero(lengths) or sum(lengths) < 2 * len(chosen) * LEAST_TOKENS


@given(lengths_of_batches)
def test_rows_come_back_in_their_places(lengths: list[int]) -> None:
    ends = np.concatenate([[0], np.cumsum(lengths)])
    x = np.arange(2.0 * ends[-1]).reshape(-1, 2)

    parts, rows = [], []
    for own_rows, own_ends in split(ends):
        part = x[own_rows]
        # Each group gets whole sequences, in order.
        for start, end in pairwise(own_ends.tolist()):
            assert (np.diff(part[start:end, 0]) == 2).all()
            assert end == start or part[start, 0] / 2 in ends
        parts.append(part)
        rows.append(own_rows)
    assert np.array_equal(join(parts, rows), x)


@pytest.mark.parametrize("lengths", [[300, 300], [128] * 8, [16, 500, 30, 0, 250, 77, 490, 128], [5, 7]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_do_not_depend_on_threads(lengths: list[int], dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ErnieMConfig(
        vocab_size=50, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80
    )
    model = ErnieMModel.from_config(config, seed=1, dtype=dtype)
    ran_on = set()

    def watched(function, items):  # type: ignore[no-untyped-def]
        def noting(item: Any) -> Any:
            ran_on.add(threading.current_thread())
            return function(item)

        return on_threads(noting, items)

    monkeypatch.setattr("ernie_m.reference.model.on_threads", watched)
    found = []
    for limit in (1, 2, 4):
        with threadpoolctl.threadpool_limits(limit, user_api="blas"):
            out = model(**batch(lengths), output_hidden_states=True)
        found.append([out.pooler_output, *out.hidden_states])
    for others in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], others, strict=True))
    # With more than one group, other threads than this one really ran.
    assert (len(ran_on) > 1) == (len(groups_of(lengths)) > 1)


def test_without_threadpoolctl_groups_run_here(model: ErnieMModel, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = batch([300, 300, 200])
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        wanted = model(**inputs).last_hidden_state
        monkeypatch.setattr(groups, "_blas", lambda: None)
        seen = on_threads(lambda _: threading.current_thread(), range(4))
        assert set(seen) == {threading.current_thread()}
        assert np.array_equal(model(**inputs).last_hidden_state, wanted)


def test_a_trace_agrees_with_what_groups_compute(model: ErnieMModel) -> None:
    inputs = batch([300, 300, 200])
    free = model(**inputs).last_hidden_state
    with trace() as t:
        model(**inputs)
    last = t["encoder.layers.1.norm2"].padded()
    # The same sums in products of other shapes.
    assert np.allclose(free, last, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("four_threads")
def test_limits_come_back_after_an_error() -> None:
    before = blas_threads()

    def fails(i: int) -> int:
        assert set(blas_threads()) == {1}
        if i == 2:
            raise OSError("no luck")
        return i

    with pytest.raises(OSError, match="no luck"):
        on_threads(fails, range(4))
    assert blas_threads() == before
    assert on_threads(lambda i: i * i, range(5)) == [0, 1, 4, 9, 16]
    assert blas_threads() == before


@pytest.mark.usefixtures("four_threads")
def test_of_calls_that_overlap_one_gets_threads() -> None:
    before, begun, others = blas_threads(), threading.Event(), []

    def other() -> None:
        assert begun.wait(60)
        others.extend(on_threads(lambda _: threading.current_thread(), range(4)))

    thread = threading.Thread(target=other)
    thread.start()

    def first(i: int) -> object:
        begun.set()
        thread.join(60)
        assert set(blas_threads()) == {1}
        return threading.current_thread()

    ours = on_threads(first, range(4))
    assert others == [thread] * 4
    assert threading.current_thread() not in ours
    assert blas_threads() == before


def test_a_limit_of_the_callers_other_thread_is_left_alone() -> None:
    held, leave, before = threading.Event(), threading.Event(), blas_threads()

    def holds() -> None:
        with threadpoolctl.threadpool_limits(3, user_api="blas"):
            held.set()
            leave.wait(60)

    thread = threading.Thread(target=holds)
    thread.start()
    assert held.wait(60)
    try:
        assert on_threads(lambda i: i * i, range(4)) == [0, 1, 4, 9]
        assert set(blas_threads()) == {3}
    finally:
        leave.set()
        thread.join(60)
    assert blas_threads() == before


@pytest.mark.usefixtures("four_threads")
def test_threads_see_the_callers_settings() -> None:
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        on_threads(lambda _: np.exp(np.float32([1000.0])), range(4))
