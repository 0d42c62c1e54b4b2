"""The vocabulary head: the loss of the next token without the logits of all places at once, by the model's own scales;
and linear layers whose matrix products oneDNN computes.

Logits are made, used and thrown away for a few places at a time, and their gradients are computed right then (Hsu et
al. 2024, Liger Kernel, section 3.2): what is kept is of the size of the hidden states and of the head itself.

On CPUs torch gives products in fp32 to MKL, which has no AVX-512 code for AMD's processors: on a core of Zen 5 it
computes 110 GFLOP/s, and oneDNN, which comes with torch as well, 230 (`benchmarks/LOG.md`). vLLM's build for CPUs uses
oneDNN for its layers too. The operator is the one that torch.compile emits for a linear layer; it has no gradient.
"""

import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from minos_ray.training.models import on_meta

CHUNK_BYTES = 2**26  # of fp32 logits that exist at once
# Logits that are put in to see what comes out: one that no cap changes, one that every cap does.
LOW, HIGH = 2.0**-10, 1e30
ROWS = 64  # oneDNN keeps half a megabyte of code for every number of rows that it meets: multiples of this only


class Scales(NamedTuple):
    """What a model does around its head: hidden states times `before`, logits times `after`, then capped by a tanh."""

    before: float = 1.0
    after: float = 1.0
    cap: float | None = None


class VocabularyHead(nn.Linear):
    """A model's own head, which also gives the loss of places; what it gives without targets stays as it was."""

    scales: Scales

    def forward(self, input: torch.Tensor, targets: torch.Tensor | None = None, summed: bool = True) -> Any:
        """Logits; with `targets` [places] their summed cross-entropy and each one's log-probability, both in fp32.

        Without `summed` the log-probabilities alone, which then have gradients of their own.
        """
        if targets is None:
            return super().forward(input)
        if not summed:
            return TokenLogs.apply(input, self.weight, self.bias, targets, self.scales)
        return NextToken.apply(input, self.weight, self.bias, targets, self.scales, torch.is_grad_enabled())


def take_over(head: nn.Module | None, scales: Scales | None) -> bool:
    """Makes a linear layer a `VocabularyHead` in place; False where that would not be what the model computes."""
    if type(head) is not nn.Linear or scales is None:
        return False
    head.__class__ = VocabularyHead
    head.scales = scales  # ty: ignore[invalid-assignment] it is a VocabularyHead by now
    return True


class NextToken(torch.autograd.Function):
    """Cross-entropy over the vocabulary in chunks of places; the gradient of the head is summed in fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        scales: Scales,
        with_gradients: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[places, width], [vocabulary, width], [vocabulary], [places] in; the sum and [places] out."""
        # Gradients of weights are summed in fp32.
        sums = [None if x is None else torch.zeros_like(x, dtype=torch.float32) for x in (weight, bias)]
        sums.insert(0, torch.zeros_like(hidden))
        needed = ctx.needs_input_grad[:3]
        ctx.gradients = [g if with_gradients and need else None for g, need in zip(sums, needed, strict=True)]
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        logs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for part in parts(len(targets), len(weight)):
            logs[part] = one_chunk(hidden[part], weight, bias, targets[part], scales, ctx.gradients, part)
        ctx.mark_non_differentiable(logs)
        return -logs.sum(), logs

    @staticmethod
    def backward(ctx: Any, *output_gradients: Any) -> tuple[torch.Tensor | None, ...]:
        """The gradients of the forward pass times the one of the sum; their memory is released."""
        gradient, _ = output_gradients
        gradients, ctx.gradients = ctx.gradients, None
        pairs = zip(gradients, ctx.dtypes, strict=True)
        return (*(None if g is None else g.mul_(gradient).to(dtype) for g, dtype in pairs), None, None, None)


class TokenLogs(torch.autograd.Function):
    """Log-probabilities of tokens in chunks of places; the backward pass makes the logits of several chunks again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        scales: Scales,
    ) -> torch.Tensor:
        """[places, width], [vocabulary, width], [vocabulary], [places] in, [places] out."""
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.scales = scales
        logs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for part in parts(len(targets), len(weight)):
            logits, _ = scaled_logits(hidden[part], weight, bias, scales)
            logs[part] = (logits.gather(1, targets[part, None]) - torch.logsumexp(logits, -1, keepdim=True))[:, 0]
        return logs

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients, those of weights summed in fp32."""
        (slopes,), (hidden, weight, bias, targets) = output_gradients, ctx.saved_tensors
        needed = zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        gradients = [torch.zeros_like(x, dtype=torch.float32) if need else None for x, need in needed]
        if gradients[0] is not None:
            gradients[0] = torch.zeros_like(hidden)
        for part in parts(len(targets), len(weight)):
            one_chunk(hidden[part], weight, bias, targets[part], ctx.scales, gradients, part, -slopes[part, None])
        pairs = zip(gradients, (hidden, weight, bias), strict=True)
        return (*(None if g is None else g.to(x.dtype) for g, x in pairs), None, None)


def parts(places: int, words: int) -> Iterator[slice]:
    """Chunks of places whose logits exist at once."""
    size = max(1, CHUNK_BYTES // (4 * words))
    return (slice(start, start + size) for start in range(0, places, size))


def one_chunk(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    scales: Scales,
    gradients: list[torch.Tensor | None],
    part: slice,
    factors: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-probabilities of the targets of one chunk; its gradients are added to `gradients` of hidden, weight, bias.

    They are of the cross-entropy of each place, times its one of `factors` [places, 1] where they are given.
    """
    read = hidden if scales.before == 1 else hidden * scales.before
    logits, slopes = scaled_logits(hidden, weight, bias, scales)
    total = torch.logsumexp(logits, -1, keepdim=True)
    logs = (logits.gather(1, targets[:, None]) - total)[:, 0]
    of_hidden, of_weight, of_bias = gradients
    if of_hidden is None and of_weight is None and of_bias is None:
        return logs
    logits.sub_(total).exp_()
    logits.scatter_add_(1, targets[:, None], torch.full_like(total, -1.0))
    if factors is not None:
        logits.mul_(factors)
    if slopes is not None:
        logits.mul_(slopes)
    slope = (logits if scales.after == 1 else logits.mul_(scales.after)).to(hidden.dtype)
    if of_hidden is not None:
        of_hidden[part] = product(slope, weight.T)
        of_hidden[part] *= scales.before
    if of_weight is not None:
        if read.dtype == of_weight.dtype:
            of_weight.addmm_(slope.T, read)
        else:
            of_weight += slope.T @ read
    if of_bias is not None:
        of_bias += slope.float().sum(0)
    return logs


def scaled_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scales: Scales
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits [places, vocabulary] in fp32, and the slopes of the cap at them, None without one."""
    logits = product(hidden if scales.before == 1 else hidden * scales.before, weight, bias).float()
    if scales.after != 1:
        logits *= scales.after
    if scales.cap is None:
        return logits, None
    capped = torch.tanh_(logits.div_(scales.cap))
    return capped * scales.cap, 1 - capped.square()


def scales_of(model: Any, kind: str) -> Scales | None:
    """The scales of a model, measured: its own forward around a backbone and a head that return known values.

    None when it does more than scale and cap (another layer before the head, say): then only itself gives its logits.
    """
    if kind == "lm":
        with torch.device("meta"):
            language = type(model)(model.config)
    else:  # code from beside a model was trusted when that was loaded
        language = on_meta(model.config, type(model).__module__.startswith("transformers_modules"))
    head, seen = language.get_output_embeddings(), []
    if type(head) is not nn.Linear:
        return None
    asked = torch.tensor([[[LOW, 1.0, HIGH]]])

    def answer(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden)
        return asked.clone()

    head.forward = answer
    backbone = backbone_of(language)
    for module in (backbone, getattr(backbone, "decoder", None)):
        if module is not None:
            module.forward = lambda *_, **__: BackboneOutput(last_hidden_state=torch.ones(1, 1, head.in_features))
    try:
        with torch.no_grad():
            logits = language(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False).logits
        low, middle, high = logits.flatten().tolist()
        before = seen[0].flatten()
    except Exception:
        return None  # a forward that wants more than that; the trial before training compares whatever is used
    after, cap = low / LOW, high if high < 1e20 * low else None
    scales = Scales(before[0].item(), after if abs(after - 1) > 1e-6 else 1.0, cap)
    capped = after if cap is None else cap * torch.tanh(torch.tensor(after / cap, dtype=torch.float64)).item()
    same = (before == before[0]).all() and abs(capped - middle) <= 1e-5 * abs(middle)
    return scales if same else None


class BackboneOutput(dict):
    """The output of a backbone that was not run; every field but the hidden state is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return self.get("last_hidden_state" if key == 0 else key)


def backbone_of(model: Any) -> Any:
    """The decoder below the head, which gives hidden states; some models do not say which of their parts it is."""
    return model.base_model if model.base_model is not model else model.model


class OneDnnLinear(nn.Linear):
    """A linear layer in fp32 on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        return Product.apply(input, self.weight, self.bias)


class Product(torch.autograd.Function):
    """`functional.linear` and its gradients."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """[..., inputs], [outputs, inputs], [outputs] to [..., outputs]."""
        ctx.save_for_backward(input, weight)
        return linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients that are needed."""
        (gradient,), (input, weight) = output_gradients, ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad
        rows, inputs = (values.reshape(-1, values.shape[-1]) for values in (gradient, input))
        return (
            linear(gradient, weight.T) if of_input else None,
            linear(rows.T, inputs.T) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`functional.linear` by oneDNN, without gradients; of nothing, by torch, since oneDNN raises."""
    if not input.numel():
        return nn.functional.linear(input, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


def product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`functional.linear` without gradients, by oneDNN where that is faster."""
    on_cpu = (input.device.type, input.dtype) == ("cpu", torch.float32)
    return (linear if on_cpu and is_faster() else nn.functional.linear)(input, weight, bias)


@cache
def is_faster() -> bool:
    """Whether this machine has AMD's processors with AVX-512."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def take_layers(backbone: nn.Module) -> None:
    """Makes the plain linear layers of a model in fp32 on the CPU `OneDnnLinear` in place, where that is faster."""
    if not is_faster():
        return
    for module in backbone.modules():
        if type(module) is nn.Linear and (module.weight.device.type, module.weight.dtype) == ("cpu", torch.float32):
            module.__class__ = OneDnnLinear


class PackedLinear(nn.Module):
    """A float32 linear layer for inference on x86 CPUs, whose weights are laid out for oneDNN once, not in every call.

    Measured with torch 2.13 on one core with AVX-512: 2.3 times as fast as `nn.Linear` for 2,048 tokens of width 256 or
    576. The operators are private to torch: those that its compiler (Inductor) calls for a frozen model.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        rows = hidden.flatten(0, -2)
        if padding := -len(rows) % ROWS:
            rows = torch.cat([rows, rows.new_zeros(padding, rows.shape[1])])
        out = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return out[: len(rows) - padding].unflatten(0, hidden.shape[:-1])


def pack_linear(module: nn.Module) -> None:
    """Replaces the float32 linear layers of a module on an x86 CPU by `PackedLinear`; others stay as they are."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return
    for name, child in module.named_children():
        if type(child) is nn.Linear and child.weight.device.type == "cpu" and child.weight.dtype == torch.float32:
            setattr(module, name, PackedLinear(child))
        else:
            pack_linear(child)
