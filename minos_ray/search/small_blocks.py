"""Blocks of 16 tokens in vLLM's cache of keys and values on x86 CPUs, registered when this module is imported.

Each step of a beam computes again the tokens of its prefix that fill no block: with blocks of 32, the smallest that
vLLM 0.32 lists for CPUs, those were three of four tokens that the miniature's generator computed in a search. Its
kernel takes blocks of 16 as well: it uses them for heads whose size is no multiple of 32.
"""

from typing import Any

from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

TOKENS = 16


@register_backend(AttentionBackendEnum.CPU_ATTN)
class SmallBlocks(CPUAttentionBackend):
    """vLLM's attention on CPUs, which says that it takes these blocks."""

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """Sizes of blocks, as vLLM asks for them."""
        return [MultipleOf(TOKENS)]
