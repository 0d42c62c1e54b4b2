"""Scores of growing solutions: a step at a time, with the keys and values of everything before it.

A search asks for the score of each new step. Its tokens alone are computed; they attend to cached keys and values of
the question and of the steps before, which are computed and kept once for all solutions that begin with them. A
solution's scores are those of the whole text in one pass (`tests/scoring/test_prefix_cache.py`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from minos_ray.scoring.forest import GPU_KEYS, KEYS, Backbone, shared_prefix
from minos_ray.scoring.verifier import Scorer
from minos_ray.steps import encoding
from minos_ray.training import packing

NOTHING = np.zeros(0, np.int64)
FIRST_PLACES = 4096  # of the cache; it doubles whenever it is full


@dataclass(frozen=True)
class Branch:
    """What is cached of a solution: its token ids, the place of each in the cache, and the scores by position."""

    ids: list[int] = field(default_factory=list)
    places: np.ndarray = field(default_factory=lambda: NOTHING)
    scores: dict[int, float] = field(default_factory=dict)


class Growing(NamedTuple):
    """A solution of the problem `name`, and what is cached of any one that it may share its beginning with."""

    name: str
    question: str
    steps: Sequence[str]
    branch: Branch


class Chain(NamedTuple):
    """Tokens that follow cached ones one after another, and the positions among these tokens that are read."""

    prefix: np.ndarray
    ids: list[int]
    read: list[int]


class Layout(NamedTuple):
    """As `forest.Layout`: queries by token of the pass, keys by place in the cache, an additive mask."""

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor


class PrefixCache:
    """Keys and values of tokens by layer, [places, heads, dim]; places are reserved and released."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.free = np.arange(FIRST_PLACES)[::-1]
        self.size = FIRST_PLACES

    def reserve(self, count: int) -> np.ndarray:
        """Places for so many tokens."""
        while len(self.free) < count:
            self.free = np.concatenate([np.arange(self.size, 2 * self.size)[::-1], self.free])
            self.size *= 2
        places, self.free = self.free[-count:], self.free[:-count]
        return places

    def release(self, places: np.ndarray) -> None:
        """Places that no solution needs any more."""
        self.free = np.concatenate([self.free, places])

    def put(
        self, layer: int, places: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores keys and values [tokens, heads, dim] of a layer; returns those of all places."""
        stored = self.layers.get(layer)
        if stored is None or len(stored[0]) < self.size:
            grown = tuple(states.new_zeros(self.size, *states.shape[1:]) for states in (key, value))
            for larger, smaller in zip(grown, stored or (), strict=False):
                larger[: len(smaller)] = smaller
            stored = self.layers[layer] = (grown[0], grown[1])
        for states, computed in zip(stored, (key, value), strict=True):
            states[places] = computed
        return stored


class View:
    """Chains for one pass, as `forest.View` of a forest; their keys and values go into the cache at `nodes`."""

    def __init__(
        self, chains: Sequence[Chain], nodes: Sequence[np.ndarray], cache: PrefixCache, model: Backbone
    ) -> None:
        device = model.module.device
        self.cache, self.nodes = cache, torch.from_numpy(np.concatenate(nodes)).to(device)
        self.dtype = torch.float32 if device.type == "cpu" else model.module.dtype
        lengths = np.array([len(chain.ids) for chain in chains])
        starts = np.cumsum(lengths) - lengths
        places = [start + np.array(chain.read, np.int64) for start, chain in zip(starts, chains, strict=True)]
        self.places = torch.from_numpy(np.concatenate(places)).to(device)
        most = KEYS if packing.takes_groups(device.type) else GPU_KEYS
        # Chains of about the same length together, since each is padded to the longest of its layout.
        order = sorted(range(len(chains)), key=lambda c: (len(chains[c].prefix), lengths[c]))
        self.everywhere, self.read = [], []
        for group in grouped([len(chains[c].prefix) + lengths[c] for c in order], most):
            members = [order[number] for number in group]
            everywhere, read = layouts(
                [chains[c] for c in members], [nodes[c] for c in members], starts[members], device, self.dtype
            )
            self.everywhere.append(everywhere)
            self.read += read


def grouped(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Neighbours in groups of at most `most`, all counted as the largest of the group (or one alone); and never so
    unequal that half of a group would be padding."""
    groups: list[list[int]] = [[]]
    for number, size in enumerate(sizes):
        group = groups[-1]
        largest = max([size, *(sizes[g] for g in group[:1]), *(sizes[g] for g in group[-1:])])
        if group and (largest * (len(group) + 1) > most or largest > 2 * sizes[group[0]] + 32):
            groups.append([])
        groups[-1].append(number)
    return groups


def layouts(
    chains: Sequence[Chain], nodes: Sequence[np.ndarray], starts: np.ndarray, device: torch.device, dtype: torch.dtype
) -> tuple[Layout, list[Layout]]:
    """Attention of each chain to its prefix and itself: of all its tokens, and of those that are read (none: [])."""
    before = np.array([len(chain.prefix) for chain in chains])
    lengths = np.array([len(chain.ids) for chain in chains])
    longest, most = int(before.max()), int(lengths.max())
    keys = np.zeros((len(chains), longest + most), np.int64)
    for row, (chain, places) in enumerate(zip(chains, nodes, strict=True)):
        keys[row, : before[row]], keys[row, longest : longest + lengths[row]] = chain.prefix, places
    # Beyond its end a chain repeats its last token: that is computed again, and is the same.
    query = np.minimum(np.arange(most), lengths[:, None] - 1)
    column = np.arange(longest + most)
    in_prefix = column[None, None] < before[:, None, None]
    itself = (column[None, None] >= longest) & (column[None, None] - longest <= query[:, :, None])
    mask = np.where((in_prefix & (column < longest)) | itself, np.float32(0), np.float32(-np.inf))
    tokens = starts[:, None] + query
    everywhere = Layout(*tensors(tokens.ravel(), keys, mask[:, None], device, dtype))
    rows = np.repeat(np.arange(len(chains)), [len(chain.read) for chain in chains])
    if not len(rows):
        return everywhere, []
    read = np.concatenate([np.array(chain.read, np.int64) for chain in chains])
    at_read = tensors(starts[rows] + read, keys[rows], mask[rows, read][:, None, None], device, dtype)
    return everywhere, [Layout(*at_read)]


def tensors(
    queries: np.ndarray, keys: np.ndarray, mask: np.ndarray, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The parts of a layout on a device."""
    asking, asked, masked = map(torch.from_numpy, (queries, keys, mask))
    return asking.to(device), asked.to(device), masked.to(device, dtype)


class StepScorer:
    """A verifier with a score for each step, for solutions that grow.

    Models that take no cached keys and values here (`forest.Masked`, `Padded`; sequences beyond a sliding window)
    give the same scores from the whole text.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.cache, self.tokens = scorer, PrefixCache(), 0
        self.backbone = scorer.backbone if isinstance(scorer.backbone, Backbone) else None
        self.questions: dict[str, Branch] = {}
        self.places: dict[str, np.ndarray] = {}

    def __call__(self, solutions: Sequence[Growing]) -> list[tuple[list[float], Branch]]:
        """Of each solution the scores of all steps, and what is cached of it now; no scores where the verifier refuses
        it."""
        scorer = self.scorer
        encoded = encoding.encode_solutions(scorer.tokenizer, [(s.question, s.steps) for s in solutions], scorer.layout)
        usable = [encoding.refusal(solution, scorer.max_length) is None for solution in encoded]
        longest = scorer.together if self.backbone else 0
        cached = [ok and len(e.ids) <= longest for ok, e in zip(usable, encoded, strict=True)]
        results: list[tuple[list[float], Branch]] = [([], solution.branch) for solution in solutions]
        alone = [row for row, ok in enumerate(usable) if ok and not cached[row]]
        if alone:
            scores, tokens = scorer.compute([encoded[r].ids for r in alone], [encoded[r].positions for r in alone])
            self.tokens += tokens
            for row, values in zip(alone, scores, strict=True):
                results[row] = (values, solutions[row].branch)
        rows = [row for row, ok in enumerate(cached) if ok]
        self.open({solutions[row].name: encoded[row].ids[: encoded[row].first] for row in rows})
        branches = self.grow([solutions[row] for row in rows], [encoded[row] for row in rows])
        for row, branch in zip(rows, branches, strict=True):
            results[row] = ([branch.scores[position] for position in encoded[row].positions], branch)
        return results

    def open(self, prompts: dict[str, list[int]]) -> None:
        """Caches what stands before the first step, for problems whose question is not cached yet."""
        prompts = {name: ids for name, ids in prompts.items() if name not in self.questions}
        for (name, ids), (places, _) in zip(
            prompts.items(), self.extend([Chain(NOTHING, ids, []) for ids in prompts.values()]), strict=True
        ):
            self.questions[name], self.places[name] = Branch(ids, places), places

    def keep(self, name: str, branches: Iterable[Branch]) -> None:
        """Releases what is cached of a problem, except for its question and these branches."""
        if name in self.questions:
            kept = np.unique(np.concatenate([self.questions[name].places, *(branch.places for branch in branches)]))
            self.cache.release(np.setdiff1d(self.places[name], kept))
            self.places[name] = kept

    def close(self, name: str) -> None:
        """Releases all that is cached of a problem."""
        if self.questions.pop(name, None):
            self.cache.release(self.places.pop(name))

    def grow(self, solutions: Sequence[Growing], encoded: Sequence[encoding.Encoded]) -> list[Branch]:
        """The branches of encoded solutions; what several of them add to the same beginning is computed once."""
        chains: dict[tuple, Chain] = {}
        parts = []
        for solution, (ids, positions, _) in zip(solutions, encoded, strict=True):
            branch = solution.branch if solution.branch.ids else self.questions[solution.name]
            common = shared_prefix(branch.ids, ids)
            # Where the text before was split otherwise, a step's end may be cached, but was not read.
            common = next((p for p in positions if p < common and p not in branch.scores), common)
            prefix, read = branch.places[:common], [p - common for p in positions if p >= common]
            key = (int(prefix[-1]) if common else solution.name, *ids[common:], *read)
            if len(ids) > common:
                chains.setdefault(key, Chain(prefix, ids[common:], read))
            parts.append((solution.name, branch, common, key))
        computed = dict(zip(chains, self.extend(list(chains.values())), strict=True))
        grown = []
        for (_, branch, common, key), (ids, _, _) in zip(parts, encoded, strict=True):
            places, scores = computed.get(key, (NOTHING, {}))
            of_steps = {position: score for position, score in branch.scores.items() if position < common}
            of_steps |= {common + place: score for place, score in scores.items()}
            grown.append(Branch(ids, np.concatenate([branch.places[:common], places]), of_steps))
        owners = {key: name for name, _, _, key in parts}
        for key, (places, _) in computed.items():
            self.places[owners[key]] = np.concatenate([self.places[owners[key]], places])
        return grown

    def extend(self, chains: Sequence[Chain]) -> list[tuple[np.ndarray, dict[int, float]]]:
        """Computes chains; of each the places of its tokens and its scores by position among its tokens."""
        results: list[tuple[np.ndarray, dict[int, float]]] = []
        first = 0
        while first < len(chains):
            last, tokens = first + 1, len(chains[first].ids)
            while last < len(chains) and tokens + len(chains[last].ids) <= self.scorer.budget:
                tokens += len(chains[last].ids)
                last += 1
            results += self.forward(chains[first:last])
            first = last
        return results

    def forward(self, chains: Sequence[Chain]) -> list[tuple[np.ndarray, dict[int, float]]]:
        """`extend` in one pass."""
        assert self.backbone is not None
        nodes = [self.cache.reserve(len(chain.ids)) for chain in chains]
        ids = np.array([token for chain in chains for token in chain.ids])
        depths = np.concatenate([len(chain.prefix) + np.arange(len(chain.ids)) for chain in chains])
        self.tokens += len(ids)
        with torch.inference_mode():
            view = View(chains, nodes, self.cache, self.backbone)
            hidden = self.backbone.run(ids, depths, view)
            scores = torch.sigmoid(self.scorer.head(hidden)[:, 0].float()).cpu().tolist() if len(hidden) else []
        values = iter(scores)
        return [
            (places, {position: next(values) for position in chain.read})
            for places, chain in zip(nodes, chains, strict=True)
        ]
