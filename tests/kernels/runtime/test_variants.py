"""How kernels are launched: the target of each GPU, and configurations that a launch accepts at every size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.kernels import attention, embedding_backward, first_token, gelu, gelu_backward, layer_norm
from ernie_m.kernels import layer_norm_backward as norm_backward
from ernie_m.kernels.checking.operations import with_kernel
from ernie_m.kernels.runtime import variants
from ernie_m.kernels.runtime.dtypes import TRITON_TYPES
from ernie_m.kernels.runtime.variants import TARGETS, Configuration, target_of

# The A100, the L4 and the RTX 40, the H100, the B200, the RTX 50, and what comes after.
CAPABILITIES = {
    (8, 0): "sm_80",
    (8, 6): "sm_80",
    (8, 9): "sm_80",
    (9, 0): "sm_90",
    (10, 0): "sm_100",
    (10, 3): "sm_100",
    (12, 0): "sm_100",
    (12, 1): "sm_100",
}
MOST_COLUMNS = 2**20


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_target_of_each_capability(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two GPUs has its own. Seen red: 8.9 taken for sm_90, and the first GPU's target for both."""
    asked = []

    def get_device_capability(index: int) -> tuple[int, int]:
        asked.append(index)
        return capability if index == 1 else (8, 0)

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", get_device_capability)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    variants._target_of.cache_clear()
    try:
        assert target_of(torch.device("cuda", 0)) == "sm_80"
        assert target_of(torch.device("cuda", 1)) == target_of(torch.device("cuda")) == CAPABILITIES[capability]
        assert asked == [0, 1]
    finally:
        variants._target_of.cache_clear()


def test_the_target_of_amd_and_of_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """ROCm reports a capability too: 9.4 for the MI300, which is not a Hopper."""
    monkeypatch.setattr(torch.version, "hip", "6.2")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 4))
    variants._target_of.cache_clear()
    try:
        assert target_of(torch.device("cuda", 0)) == "gfx942"
    finally:
        variants._target_of.cache_clear()
    assert target_of(torch.device("cpu")) == "sm_90"


def accepted(chosen: Configuration) -> bool:
    """Whether a launch accepts it: warps are a power of two up to 32, and so are the sizes of blocks."""
    warps = chosen.num_warps
    powers = [n for n in (warps, *chosen.blocks.values()) if n is not True and n is not False]
    return 1 <= warps <= 32 and chosen.num_stages >= 1 and all(n >= 1 and n & (n - 1) == 0 for n in powers)


def test_rows_of_every_size_have_a_configuration() -> None:
    """What a configuration depends on is the power of two above, so its ends stand for all sizes up to 2²⁰."""
    for exponent in range(21):
        for columns in {2**exponent - 1, 2**exponent, min(2**exponent + 1, MOST_COLUMNS)} - {0}:
            chosen = layer_norm.configuration(columns)
            assert accepted(chosen) and columns <= chosen.blocks["BLOCK"] < 2 * columns
            chosen = norm_backward.configuration(columns)
            assert accepted(chosen) and columns <= chosen.blocks["BLOCK"] < 2 * columns
            assert accepted(embedding_backward.table_configuration(columns))
            for target in TARGETS:
                assert accepted(gelu_backward.configuration(columns, target))
                chosen = gelu.configuration(columns, target)
                assert accepted(chosen) and chosen.blocks["ROWS"] * chosen.blocks["COLUMNS"] == gelu.TILE


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", with_kernel())
def test_variants_name_every_argument_of_their_kernel_once(name: str, target: str) -> None:
    operation = with_kernel()[name]
    assert operation.variants is not None
    for variant in operation.variants(target):
        assert variant.operation == name and variant.tile >= 1 and accepted(variant.configuration)
        assert sorted([*variant.signature, *variant.constants]) == sorted(variant.kernel.arg_names)
        assert variant.configuration.blocks.items() <= variant.constants.items()


@given(columns=st.integers(1, MOST_COLUMNS), target=st.sampled_from(TARGETS))
def test_rows_of_drawn_sizes_have_a_configuration(columns: int, target: str) -> None:
    assert accepted(layer_norm.configuration(columns)) and accepted(gelu.configuration(columns, target))


@given(
    target=st.sampled_from(TARGETS),
    dtype=st.sampled_from(list(TRITON_TYPES)),
    D=st.sampled_from(attention.HEAD_SIZES),
    longest=st.sampled_from([63, 64, 65]) | st.integers(0, MOST_COLUMNS),
)
def test_attention_of_every_size_has_a_configuration(target: str, dtype: torch.dtype, D: int, longest: int) -> None:
    """Without a loop, one block of keys holds the longest sequence."""
    chosen = attention.configuration(target, dtype, D, longest)
    assert accepted(chosen) and accepted(first_token.configuration(D))
    assert chosen.blocks["LOOP"] or longest <= chosen.blocks["BN"]
