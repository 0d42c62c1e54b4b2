"""Which of torch's attention kernels a pass may take: asked wrongly, GPUs fall back to one that keeps all scores.

Read in torch 2.13: `varlen_attn` is FlashAttention 2 without the padding that `scaled_dot_product_attention` does, and
with `enable_gqa` the latter takes "only Flash_attention and math kernel on CUDA", of which flash takes no mask and no
fp32.
"""

import torch
from torch.nn import functional

HALF = (torch.float16, torch.bfloat16)
LARGEST_HEAD = 256
AMPERE = (8, 0)


def takes_varlen(dtype: torch.dtype, head_sizes: set[int], capability: tuple[int, int] | None) -> bool:
    """Whether torch's flash attention over rows of different lengths can be used.

    `head_sizes` are those of keys and values, `capability` that of the GPU, None on a CPU.
    """
    fits = len(head_sizes) == 1 and all(size % 8 == 0 and size <= LARGEST_HEAD for size in head_sizes)
    return capability is not None and capability >= AMPERE and dtype in HALF and fits


def capability_of(states: torch.Tensor) -> tuple[int, int] | None:
    """Compute capability of the GPU that holds a tensor."""
    return torch.cuda.get_device_capability(states.device) if states.is_cuda else None


def takes_groups(device: str) -> bool:
    """Whether keys and values may be fewer than the queries' heads without falling back to the math kernel."""
    return device != "cuda"


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention of [rows, heads, asking, dim] to [rows, key heads, asked, dim]; causal where there is no mask."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not takes_groups(query.device.type):
        key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
