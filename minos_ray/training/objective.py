"""The trained module: a backbone without its own dropout, the head at the trained positions only, the summed losses;
and the trial that chooses how rows go through it: rows together must give what transformers gives for each row alone.

Nothing is assumed about what a model computes between its layers. Before a training two short rows go through it, on
its own weights and on every rank: each alone by the model's own forward and plain attention, then both together in one
way after the other, the fastest first. The first that gives the same hidden states and the same losses is taken.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from minos_ray.config.training import Kind
from minos_ray.errors import UserError
from minos_ray.training import packing, vocabulary
from minos_ray.training.base import reads_last, scalar_head
from minos_ray.training.data import Rows, as_table, language_row
from minos_ray.training.packing import NotPackable, unpackable
from minos_ray.training.verifier_losses import Loss, binary, computed
from minos_ray.training.vocabulary import backbone_of

# Where a larger fraction of the tokens is read, the last layer works on all: a mask costs more than causal attention.
FEW = 0.25
# Noise on what the experts of Mixtral, MiniMax, Phi-MoE and DBRX read.
JITTER = ("jitter_noise", "input_jitter_noise", "moe_jitter_eps")
# Routers that draw the experts of a token at random in training (SparseMixer), without a rate that could be 0.
DRAWING = ("PhimoeTopKRouter",)
LENGTHS = (11, 7)
SHARED = 4  # tokens of both rows where pairs are trained
# The attention of transformers as models are written, without any kernel.
EAGER = "eager"
# Differences that are rounding, of hidden states and of logits (see `relative` and `mean_difference`): fp32 and half.
LIMITS = {torch.float32: (1e-4, 1e-4)}
HALF = (0.06, 0.06)
# These say something about the machine, not about the model.
DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)


class Losses(NamedTuple):
    """Sums over the positions of a micro-batch, `main` and `language`, and what was computed at the trained ones.

    `read` [n, width] is what the head read (a scalar zero by the model's own forward); `logits` [n] are a verifier's
    logits, or a language model's log-probabilities of the next tokens.
    """

    main: torch.Tensor
    language: torch.Tensor
    read: torch.Tensor
    logits: torch.Tensor


class Way(NamedTuple):
    """How rows go through a model: `packed` or as a padded batch, by which attention of transformers.

    `by_model`: the logits are those of the model's own forward, at all positions and for all words at once.
    """

    packed: bool
    attention: str
    by_model: bool = False


PACKED = Way(True, packing.NAME)


class Objective(nn.Module):
    """Wraps a transformers model; `forward` gives the losses summed over their positions.

    `lm`: cross-entropy of the next token; with `beta` DPO's loss of pairs (`preferences`). `orm`, `prm`: `loss` of a
    scalar head's logits against the targets; with a `vocabulary` head also the language loss on right solutions (Cobbe
    et al. 2021, section 4.2: a joint objective).
    In training `dropout` zeroes that fraction of what the scalar head reads.
    """

    def __init__(
        self,
        model: Any,
        kind: Kind,
        words: nn.Linear | None = None,
        dropout: float = 0.0,
        loss: Loss = binary,
        beta: float | None = None,
    ) -> None:
        super().__init__()
        self.loss, self.beta = loss, beta
        self.model, self.kind, self.vocabulary, self.dropout = model, kind, words, dropout
        self.attention = model.config._attn_implementation  # as transformers has chosen it
        head = model.get_output_embeddings() if kind == "lm" else words
        # A vocabulary head that is more than a linear layer and a scale is left to the model's own forward.
        self.head_is_known = (kind != "lm" and words is None) or vocabulary.take_over(
            head, vocabulary.scales_of(model, kind)
        )
        packing.ReadOnly(backbone_of(model))
        self.take(PACKED)

    def take(self, way: Way) -> None:
        """Computes rows in this way from now on."""
        packing.register()
        self.way = way
        self.model.set_attn_implementation(way.attention)

    def forward(
        self,
        ids: torch.Tensor,
        lengths: torch.Tensor,
        shared: torch.Tensor,
        positions: torch.Tensor,
        targets: torch.Tensor,
        language: torch.Tensor,
        element_ids: torch.Tensor,
        rows: torch.Tensor,
        problems: torch.Tensor,
    ) -> Losses:
        """The fields of `packing.Micro`; sums over no positions are zero and give zero gradients."""
        if self.beta is not None:
            return self.preferences(ids, packing.Packed(lengths, shared=shared), positions, targets, rows)
        read_at = positions if self.vocabulary is None else torch.unique(torch.cat([positions, language]))
        packed = packing.Packed(lengths, read_at if 0 < len(read_at) <= FEW * len(ids) else None)
        if self.way.by_model:
            return self.by_model(ids, packed, positions, (targets, rows, problems))
        if not self.head_is_known:
            raise packing.NotPackable("its vocabulary head is more than a linear layer and a scale")
        hidden = self.hidden(ids, packed)
        read = hidden[positions]
        zero = read.new_zeros((), dtype=torch.float32)
        if self.kind == "lm":
            loss, logs = self.head()(read, ids[positions + 1])
            return Losses(loss, zero, read, logs)
        if self.training and self.dropout:
            read = read * dropout_mask(element_ids, read.shape[1], self.dropout) / (1 - self.dropout)
        logits = self.head()(read).float().squeeze(-1)
        main, _ = computed(self.loss, logits, targets, rows, problems)
        if self.vocabulary is None:
            return Losses(main, zero, read, logits)
        words, _ = self.vocabulary(hidden[language], ids[language + 1])
        return Losses(main, words, read, logits)

    def preferences(
        self,
        ids: torch.Tensor,
        packed: packing.Packed,
        positions: torch.Tensor,
        reference: torch.Tensor,
        rows: torch.Tensor,
    ) -> Losses:
        """DPO's loss summed over pairs (Rafailov et al. 2023, equation 7): -log sigmoid of `beta` times the margin.

        `logits` are the log-probabilities [n] of the next tokens, `reference` [n] those of the reference model; the
        chosen row of a pair is followed by the rejected one. A row without a partner has no loss.
        """
        assert self.beta is not None
        next_ids = ids[packed.tokens[positions + 1]]
        if self.way.by_model:
            logits = self.model(input_ids=packed.padded(ids), use_cache=False).logits.float().flatten(0, 1)
            read = logits.new_zeros(())
            places = (packed.rows * packed.longest + packed.offsets)[positions]
            logs = torch.log_softmax(logits[places], -1).gather(1, next_ids[:, None])[:, 0]
        elif self.head_is_known:
            read = self.hidden(ids, packed)[packed.tokens[positions]]
            logs = self.head()(read, next_ids, summed=False)
        else:
            raise packing.NotPackable("its vocabulary head is more than a linear layer and a scale")
        sums = logs.new_zeros(len(packed.lengths)).index_add(0, rows, logs - reference)
        pairs = sums[: len(sums) // 2 * 2].view(-1, 2)
        main = functional.softplus(self.beta * (pairs[:, 1] - pairs[:, 0])).sum()
        return Losses(main, main.new_zeros(()), read, logs)

    def hidden(self, ids: torch.Tensor, packed: packing.Packed) -> torch.Tensor:
        """Hidden states of the packed rows, [tokens, width], right where the model is read."""
        backbone = backbone_of(self.model)
        if self.way.packed:
            inputs = {"input_ids": ids[None], "position_ids": packed.position_ids, "packed": packed}
            return backbone(**inputs, use_cache=False).last_hidden_state[0]
        out = backbone(input_ids=packed.padded(ids), use_cache=False).last_hidden_state
        return out.flatten(0, 1)[packed.in_grid]

    def by_model(
        self, ids: torch.Tensor, packed: packing.Packed, positions: torch.Tensor, labels: tuple[torch.Tensor, ...]
    ) -> Losses:
        """The losses from the logits of the model's own forward; an ORM's are of the last token of each row."""
        if self.kind == "lm":
            logits = self.model(input_ids=packed.padded(ids), use_cache=False).logits.float()
            logs = torch.log_softmax(logits.flatten(0, 1)[packed.in_grid[positions]], -1)
            logs = logs.gather(1, ids[positions + 1, None])[:, 0]
            zero = logits.new_zeros(())
            return Losses(-logs.sum(), zero, zero, logs)
        logits = self.scores_by_model(ids, packed, positions).float()
        zero = logits.new_zeros(())
        main, _ = computed(self.loss, logits, *labels)
        return Losses(main, zero, zero, logits)

    def scores_by_model(self, ids: torch.Tensor, packed: packing.Packed, positions: torch.Tensor) -> torch.Tensor:
        """Logits [n] at `positions` by the model's own forward; a class that reads the last token gets prefixes."""
        if not reads_last(self.model):
            logits = self.model(input_ids=packed.padded(ids), use_cache=False).logits
            return logits.flatten()[packed.in_grid[positions]]
        if self.kind == "orm":
            return self.model(input_ids=packed.padded(ids), use_cache=False).logits.flatten()
        starts = packed.starts[torch.searchsorted(packed.starts, positions, right=True) - 1]
        prefixes = zip(starts.tolist(), (positions + 1).tolist(), strict=True)
        return torch.cat([self.model(input_ids=ids[None, a:b], use_cache=False).logits.flatten() for a, b in prefixes])

    def head(self) -> nn.Module:
        """The vocabulary head of a language model, the scalar head of a verifier."""
        return self.model.get_output_embeddings() if self.kind == "lm" else scalar_head(self.model)


def dropout_mask(element_ids: torch.Tensor, width: int, dropout: float) -> torch.Tensor:
    """What dropout leaves, bool [n, width], drawn by hashing the numbers `element_ids` [n]: not by rank or pack.

    The hash is splitmix64's, on signed numbers that wrap around.
    """
    x = element_ids[:, None] * width + torch.arange(width, device=element_ids.device)
    x = (x + 1) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return (x & 0xFFFFFF) >= dropout * (1 << 24)


def disable_dropout(model: nn.Module) -> list[tuple[Any, str, float]]:
    """Sets all rates of dropout, layer drop and jitter in a transformers model to 0, also in its configs.

    What is trained is then the function that is scored with. A model's own dropout (GPT-2, Phi-2: 0.1) is drawn by rank
    and pack, so two layouts of one step would train different functions. Returns the configs' rates for
    `restore_dropout`: a saved model keeps what its base says.
    """
    for module in model.modules():
        names = ("p",) if isinstance(module, nn.modules.dropout._DropoutNd) else dropout_rates(module, JITTER)
        for name in names:
            setattr(module, name, 0.0)
        if type(module).__name__ in DRAWING:
            module.eval()
            # Stays in evaluation when the model is set to training.
            module.train = lambda mode=True, module=module: module
    # Some attention reads its rate from the config at each call.
    configs = {id(config): config for module in model.modules() for config in with_parts(getattr(module, "config", 0))}
    rates = [(config, name, getattr(config, name)) for config in configs.values() for name in dropout_rates(config)]
    for config, name, _ in rates:
        setattr(config, name, 0.0)
    return rates


def restore_dropout(rates: list[tuple[Any, str, float]]) -> None:
    """Puts the rates back into the configs."""
    for config, name, rate in rates:
        setattr(config, name, rate)


def dropout_rates(owner: Any, names: tuple[str, ...] = ()) -> list[str]:
    """Attributes that hold a rate: floats called `..._drop...` (integers and truth values are none), and `names`."""
    return [
        name for name, value in vars(owner).items() if isinstance(value, float) and ("drop" in name or name in names)
    ]


def with_parts(config: Any) -> Iterator[Any]:
    """A config of transformers and the configs inside; none for anything else."""
    from transformers import PreTrainedConfig

    if isinstance(config, PreTrainedConfig):
        yield config
        for value in vars(config).values():
            yield from with_parts(value)


Forward = Callable[[Rows, np.ndarray], Losses]


@torch.no_grad()
def choose_way(forward: Forward, objective: Objective, packing: str, name: str) -> str | None:
    """Takes the first way that is right for the model; a line for the user when it is slower than what was asked for.

    `forward` computes some rows with the objective. All ranks must call it. UserError when no way is right, or when
    `packing` (`resources.train.packing`) is `on` and packed rows are not.
    """
    training = objective.training
    objective.eval()
    rows = short_rows(objective)
    try:
        expected = each_alone(forward, objective, rows)
    except DEVICE_ERRORS:
        raise
    except Exception as error:
        model = type(objective.model).__name__
        raise UserError(f"model '{name}' ({model}) cannot be run: {one_line(error)}") from error
    reasons: dict[Way, str] = {}
    for way in ways(objective, packing):
        reason = difference(forward, objective, way, rows, expected)
        wrong = torch.tensor(float(reason is not None), device=expected[1].device)
        if dist.is_initialized():
            dist.all_reduce(wrong)
        if not wrong.item():
            break
        reasons[way] = reason or "another rank found a difference"
    else:
        model, reason = type(objective.model).__name__, "; ".join(dict.fromkeys(reasons.values()))
        key = f"resources.train.packing: {packing}: " if packing == "on" else ""
        raise UserError(f"{key}model '{name}' ({model}) is not trained as transformers computes it: {reason}")
    objective.train(training)
    if PACKED not in reasons:
        return None
    logits = " and its own logits" if way.by_model else ""
    return f"model '{name}': padded rows, transformers' {way.attention} attention{logits}; packed: {reasons[PACKED]}"


def ways(objective: Objective, packing: str) -> Iterator[Way]:
    """From the fastest to the one that is nearest to transformers."""
    if packing != "off":
        yield PACKED
    if packing == "on":
        return
    for by_model in (False, True) if objective.kind == "lm" else (False,):
        for attention in dict.fromkeys((objective.attention, EAGER)):
            yield Way(False, attention, by_model)


def short_rows(objective: Objective) -> Rows:
    """Two rows of random tokens, none of which is the padding token."""
    config = objective.model.config.get_text_config()
    rng = np.random.default_rng(0)
    words = rng.permutation(
        np.setdiff1d(np.arange(min(config.vocab_size, 30_000)), [getattr(config, "pad_token_id", None) or 0])
    )
    rows: list[dict[str, Any]] = []
    for number, length in enumerate(LENGTHS):
        ids = rng.choice(words, length).tolist()
        row = language_row(str(number), ids, 1)
        if objective.kind != "lm":
            positions = [length - 1] if objective.kind == "orm" else [length // 2, length - 1]
            row |= {"positions": positions, "targets": [1.0] * len(positions), "correct": True}
        elif objective.beta is not None:
            ids[:SHARED] = rows[0]["ids"][:SHARED] if rows else ids[:SHARED]
            row = {**language_row("0", ids, SHARED), "group": 0, "shared": SHARED if rows else 0}
            row["targets"] = [0.0] * (length - SHARED)
        rows.append(row)
    return Rows(as_table(rows))


def each_alone(forward: Forward, objective: Objective, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """What the heads read [n, width], and the logits (or log-probabilities) [n] of the model's own forward, of each row
    in a pass of its own."""
    results = []
    for by_model in (True, False) if objective.head_is_known else (True,):
        objective.take(Way(False, EAGER, by_model))
        losses = [forward(rows, np.array([row])) for row in range(len(rows))]
        results.append(torch.cat([loss.logits if by_model else loss.read for loss in losses]))
    return results[-1], results[0]


def difference(
    forward: Forward, objective: Objective, way: Way, rows: Rows, expected: tuple[torch.Tensor, torch.Tensor]
) -> str | None:
    """How rows together differ in a way from each alone, None when they do not."""
    try:
        objective.take(way)
        if way.packed and (reason := unpackable(objective.model)):
            return reason
        losses = forward(rows, np.arange(len(rows)))
    except DEVICE_ERRORS:
        raise
    except Exception as error:
        return one_line(error)
    states, logits = expected
    states_limit, logits_limit = LIMITS.get(states.dtype, HALF)
    # The largest difference of a position's hidden states [n, width], as a fraction of their length.
    states, seen = states.float(), losses.read.float()
    off = ((seen - states).norm(dim=-1) / states.norm(dim=-1)).max().item() if not way.by_model else 0.0
    if not off <= states_limit:
        return f"hidden states differ from those of each row alone by {off:.2g}"
    # The mean difference of logits [n], as a fraction of their mean size where that is above 1.
    off = ((losses.logits - logits).abs().mean() / logits.abs().mean().clamp(min=1)).item()
    if not off <= logits_limit:
        return f"losses differ from those of each row alone by {off:.2g}"
    return None


def one_line(error: Exception) -> str:
    """The type and the first line of an error; a reason why rows cannot be packed has no type."""
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, NotPackable) else f"{type(error).__name__}: {text}"
