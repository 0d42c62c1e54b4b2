"""Which attention kernels are taken where, and that all give the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.training import packing

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("dtype", "sizes", "capability", "taken"),
    [
        (BF16, {128}, (8, 0), True),
        (FP16, {64}, (9, 0), True),
        (BF16, {256}, (12, 0), True),
        (FP32, {128}, (9, 0), False),
        (BF16, {128}, None, False),
        (BF16, {128}, (7, 5), False),  # T4: FlashAttention 2 begins with Ampere
        (FP16, {128}, (7, 0), False),  # V100
        (BF16, {80}, (8, 6), True),  # Phi-2
        (BF16, {100}, (8, 0), False),  # not a multiple of 8
        (BF16, {512}, (9, 0), False),
        (BF16, {192, 128}, (9, 0), False),  # keys and values of DeepSeek-V3
    ],
)
def test_varlen_attention_only_where_it_can(
    dtype: torch.dtype, sizes: set[int], capability: tuple[int, int] | None, taken: bool
) -> None:
    assert packing.takes_varlen(dtype, sizes, capability) is taken


def test_grouped_queries_with_a_mask_are_for_cpus() -> None:
    assert packing.takes_groups("cpu") and not packing.takes_groups("cuda")


@given(
    groups=st.integers(1, 4),
    heads=st.integers(1, 3),
    asked=st.integers(1, 9),
    masked=st.booleans(),
    scaling=st.sampled_from([None, 0.5]),
    seed=st.integers(0, 99),
)
def test_keys_that_are_repeated_give_what_groups_give(
    groups: int, heads: int, asked: int, masked: bool, scaling: float | None, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    query = torch.randn(2, groups * heads, asked, 8, generator=random)
    key, value = (torch.randn(2, heads, asked, 8, generator=random) for _ in range(2))
    sees = (torch.rand(2, 1, asked, asked, generator=random) < 0.5) | torch.eye(asked, dtype=torch.bool)
    mask = torch.zeros(sees.shape).masked_fill(~sees, -torch.inf) if masked else None
    with pytest.MonkeyPatch.context() as patched:
        together = packing.attend(query, key, value, mask, scaling)
        patched.setattr(packing, "takes_groups", lambda device: False)
        repeated = packing.attend(query, key, value, mask, scaling)
    torch.testing.assert_close(repeated, together, rtol=1e-5, atol=1e-6)


def test_packed_rows_with_repeated_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid as a GPU without varlen attention takes it."""
    packed = packing.Packed(torch.tensor([5, 3, 9]))
    query, key, value = (torch.randn(1, heads, 17, 8) for heads in (4, 2, 2))
    for window in (None, 4):
        grouped, _ = packing.packed_attention(
            torch.nn.Identity(), query, key, value, None, packed=packed, sliding_window=window
        )
        with monkeypatch.context() as patched:
            patched.setattr(packing, "takes_groups", lambda device: False)
            repeated, _ = packing.packed_attention(
                torch.nn.Identity(), query, key, value, None, packed=packed, sliding_window=window
            )
        torch.testing.assert_close(repeated, grouped, rtol=1e-5, atol=1e-6)
