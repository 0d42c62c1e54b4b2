"""vLLM's attention on CPUs with blocks of 16 tokens, against torch's on the same keys and values."""

import platform
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from minos_ray.candidates.engine import import_vllm
from minos_ray.config.resources import Engine
from minos_ray.search.searcher import for_steps

pytestmark = [pytest.mark.slow, pytest.mark.skipif(platform.machine() != "x86_64", reason="its kernel is x86's")]
LENGTHS, NEW = (5, 16, 37, 90), (5, 1, 20, 3)  # of sequences, and of their last tokens that attend
HEADS, KV_HEADS = 6, 2


@pytest.mark.parametrize("size", [32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512])
def test_tokens_attend_to_all_before_them_whatever_the_size_of_a_head(size: int) -> None:
    import_vllm(Engine())
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    from minos_ray.search.small_blocks import TOKENS, SmallBlocks

    assert SmallBlocks.supports_block_size(TOKENS) and size in SmallBlocks.get_supported_head_sizes()
    torch.manual_seed(size)
    kernel = _get_attn_isa(torch.float32, TOKENS, size)
    blocks = [-(-length // TOKENS) for length in LENGTHS]
    order = torch.randperm(sum(blocks)).int()
    table = torch.zeros(len(LENGTHS), max(blocks), dtype=torch.int32)
    for row, part in enumerate(order.split(blocks)):
        table[row, : len(part)] = part
    cache = torch.zeros(len(order), KV_HEADS, 2 * TOKENS, size)
    keys, values = cache.chunk(2, dim=2)
    states = [torch.randn(2, length, KV_HEADS, size) for length in LENGTHS]
    slots = [table[row, torch.arange(n) // TOKENS] * TOKENS + torch.arange(n) % TOKENS for row, n in enumerate(LENGTHS)]
    ops.cpu_attn_reshape_and_cache(*torch.cat(states, dim=1), keys, values, torch.cat(slots).long(), kernel)

    query = torch.randn(sum(NEW), HEADS, size)
    starts = torch.tensor([0, *NEW]).cumsum(0).int()
    lengths, out = torch.tensor(LENGTHS, dtype=torch.int32), torch.zeros_like(query)
    heads = (HEADS, KV_HEADS, size)
    metadata = ops.cpu_attn_get_scheduler_metadata(
        len(NEW), *heads, lengths, torch.float32, starts, True, -1, kernel, True
    )
    ops.cpu_attention_with_kv_cache(
        query, keys, values, out, starts, lengths, size**-0.5, True, None, -1, table, 0.0, metadata, None
    )
    for (key, value), asking, given, length in zip(states, query.split(NEW), out.split(NEW), LENGTHS, strict=True):
        mask = torch.ones(len(asking), length, dtype=torch.bool).tril(length - len(asking))
        parts = (part.transpose(0, 1)[None] for part in (asking, key, value))
        expected = scaled_dot_product_attention(*parts, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)
        torch.testing.assert_close(given, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("extra", "apart", "size"),
    [
        ({}, "0", 16),
        ({"dtype": "float32"}, "0", 16),
        ({}, "1", None),  # an engine in a process of its own knows no blocks of 16
        ({"distributed_executor_backend": "mp"}, "0", None),
        ({"dtype": "bfloat16"}, "0", None),
        ({"kv_cache_dtype": "fp8"}, "0", None),
        ({"block_size": 64}, "0", 64),
    ],
)
def test_an_engine_has_small_blocks_where_they_are_known_and_computed(
    extra: dict[str, Any], apart: str, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", apart)
    assert for_steps(Engine(dtype="float32", extra=extra)).extra.get("block_size") == size
