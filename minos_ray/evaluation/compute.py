"""Compute on the axis: generated tokens and FLOPs of solving and verifying, and the best choice for each budget.

A model's pass over a token takes 2 FLOPs for each of its weights in a matrix product, and 4 L d for each token that it
attends to, with L layers whose heads are d wide together (Kaplan et al., 2001.08361, section 2.1). So a text of T
tokens behind a prompt of p tokens takes

    2 W T + 2 L d ((p + T) ** 2 - p ** 2),

with T the mean length of the candidates of a problem. The prompt is computed once for all n solutions, and once for
all solutions that a verifier reads (prefix caching). A critic writes too: its tokens count as generated ones, for every
candidate that it judges. The embedding of a token is looked up, which is no matrix product; of experts so many work as
a token is sent to. No length of a prompt is stored: it is what scoring read beyond the candidates' own tokens.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow.fs as pafs

from minos_ray.config.load import Config
from minos_ray.config.schema import Model
from minos_ray.errors import UserError
from minos_ray.evaluation.choices import CONFIDENCES, Choices, Way
from minos_ray.evaluation.robust import FOLDS, VOTE, Columns, way_entry
from minos_ray.evaluation.selection import CRITIC, JUDGES
from minos_ray.evaluation.statistics import Measured
from minos_ray.graph.specs import critic_chosen
from minos_ray.store.model_files import is_hub_id, locate
from minos_ray.store.run import Run

AXES = ("tokens", "flops")
ANY = "any"  # of `verifier` in a budget: the best of all


class Size(NamedTuple):
    """Weights that work on a token, layers, and the width of all heads together."""

    weights: int
    layers: int
    width: int

    def flops(self, tokens: np.ndarray, prompt: float = 0.0) -> float:
        """Of texts of so many tokens behind a prompt of `prompt` tokens, in the mean over [texts]."""
        attention = 2 * self.layers * self.width * ((prompt + tokens) ** 2 - prompt**2)
        return float((2 * self.weights * tokens + attention).mean())


class Cost(NamedTuple):
    """Of one problem: generated tokens, and FLOPs (None where a model's size is not known)."""

    tokens: float
    flops: float | None


class Prices(NamedTuple):
    """What is charged: mean tokens of a candidate, of a prompt and of a critic's verdict; by model its size, and the
    FLOPs of a prompt and of one text behind it (None where the size is not known)."""

    tokens: float
    prompt: float
    critique: float
    sizes: Mapping[str, Size | None]
    flops: Mapping[str, tuple[float, float] | None]

    def cost(self, n: float, verified: Mapping[str, float]) -> Cost:
        """Of n solutions, of which so many are read by each verifier."""
        written = n * self.tokens + max(verified.get(name, 0) for name in JUDGES) * self.critique
        texts = {"generator": n, **{name: k for name, k in verified.items() if k}}
        charged = [(self.flops[name], count) for name, count in texts.items()]
        charges = [flops[0] + count * flops[1] for flops, count in charged if flops]
        return Cost(written, sum(charges) if len(charges) == len(charged) else None)


def prices(config: Config, run: Run, choices: Choices) -> Prices | None:
    """None where the run does not say how many tokens its candidates have, or where they were searched: n of a search's
    candidates are no search of n, and share their steps."""
    sampled = run.artefact("candidates").manifest()
    if sampled and "dropped_tokens" in sampled.counts:
        return None
    tokens = choices.joined().tokens
    lengths = tokens[~np.isnan(tokens)]
    if not len(lengths):
        return None
    read = [run.artefact(f"scores/{name}").manifest() for name in choices.verifiers if name not in JUDGES]
    prompts = [
        m.details["tokens_of_solutions"] / m.counts["candidates"] - float(lengths.mean())
        for m in read
        if m and m.details.get("tokens_of_solutions") and m.counts.get("candidates")
    ]
    critic, samples = (
        run.artefact("scores/critic").manifest(),
        config.score.judge.samples if config.score.judge else 1,
    )
    critiques = critic.counts.get("critiques", 0) if critic else 0
    critique = samples * critic.counts.get("tokens", 0) / critiques if critic and critiques else 0.0
    sizes = {"generator": size_of(config.generator, run, True)}
    judge = critic_chosen(config, run) if any(name in JUDGES for name in choices.verifiers) else ""
    models = {name: judge if name in JUDGES else f"models/{name}" for name in choices.verifiers}
    sizes |= {name: size_of(Model(model=f"run:{model}"), run, name in JUDGES) for name, model in models.items()}
    prompt, flops = max(0.0, min(prompts, default=0.0)), {}
    for name, size in sizes.items():
        text = lengths + (critique if name in JUDGES else 0)
        flops[name] = (size.flops(np.array([prompt])), size.flops(text, prompt)) if size else None
    return Prices(float(lengths.mean()), prompt, critique, sizes, flops)


def searched(run: Run) -> dict[str, Any]:
    """`compute` of evaluation.json where candidates were searched: tokens of one problem, in the mean. Empty else."""
    manifest = run.artefact("candidates").manifest()
    counts = manifest.counts if manifest else {}
    names = ("tokens", "dropped_tokens", "verifier_tokens")
    if not counts.get("problems") or any(name not in counts for name in names):
        return {}
    means = {name: counts[name] / counts["problems"] for name in ("candidates", *names)}
    return {"search": {"n": round(means.pop("candidates")), **means}}


def size_of(model: Model | None, run: Run, writes: bool) -> Size | None:
    """Of a model whose files lie here or in the run, else None. One that writes has a vocabulary head at work."""
    if model is None:
        return None
    kind, _, name = model.model.partition(":")
    try:
        if kind == "run":
            files, folder = run.fs, f"{run.root}/{name}"
        else:
            files = pafs.LocalFileSystem()
            # Of the hub what this machine has in its cache; nothing is fetched.
            if is_hub_id(model.model):
                from huggingface_hub import snapshot_download  # a tenth of a second

                folder = snapshot_download(model.model, revision=model.revision, local_files_only=True)
            else:
                folder = locate(model, run)
        with files.open_input_file(f"{folder}/config.json") as source:
            facts = json.loads(source.read())
        facts = {**facts, **facts.get("text_config", {})}
        shapes = list(tensor_shapes(files, folder))
        heads, hidden = facts["num_attention_heads"], facts["hidden_size"]
        experts = facts.get("num_local_experts") or facts.get("num_experts") or 1
        working = facts.get("num_experts_per_tok", experts) / experts
        table = [shape for _, shape in shapes if shape == [facts["vocab_size"], hidden]]
        weights = sum(np.prod(s) * (working if ".experts." in name else 1) for name, s in shapes)
        weights += facts["vocab_size"] * hidden * (bool(writes) - len(table))
        return Size(int(weights), facts["num_hidden_layers"], heads * (facts.get("head_dim") or hidden // heads))
    except (OSError, UserError, KeyError, ValueError):
        return None


def tensor_shapes(files: pafs.FileSystem, folder: str) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of the tensors in a folder's safetensors files, from their headers. OSError without any file."""
    infos = [info for info in files.get_file_info(pafs.FileSelector(folder)) if info.extension == "safetensors"]
    if not infos:
        raise OSError(f"{folder} has no safetensors file")
    for info in infos:
        with files.open_input_file(info.path) as source:
            header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
        yield from ((name, tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


class Priced(NamedTuple):
    """A way, its cost, and its outcomes [problems]."""

    way: Way
    cost: Cost
    right: np.ndarray


def compute(choices: Choices, columns: Columns, price: Prices, measured: list[Measured]) -> dict[str, Any]:
    """`compute` of evaluation.json: every way with its cost and accuracy, and the best ones for each budget.

    Rows whose intervals are still to be filled are added to `measured`.
    """
    answered = choices.joined()
    priced = []
    for way, right in columns.items():
        verified = {way.verifier: way.verified} if way.verifier else {}
        if way.method.startswith("critic-filtered") and way.verifier != CRITIC:
            verified[CRITIC] = way.n
        priced.append(Priced(way, price.cost(way.n, verified), right))
    for k in range(len(CONFIDENCES)):
        way = Way(f"adaptive-{CONFIDENCES[k]:g}", "", choices.headline, 0)
        priced.append(Priced(way, price.cost(float(answered.used[:, k].mean()), {}), answered.stopped[:, k]))
    priced.sort(key=lambda entry: entry.cost.tokens)
    return {
        "n": choices.headline,
        "problems": len(answered.tokens),
        "tokens_per_solution": price.tokens,
        "tokens_per_prompt": price.prompt,
        "tokens_per_critique": price.critique,
        "models": {name: size._asdict() if size else None for name, size in price.sizes.items()},
        "methods": [{**way_entry(p.way), **p.cost._asdict(), "accuracy": float(p.right.mean())} for p in priced],
        "budgets": [row for axis in AXES for row in budgets(choices, priced, axis, price.cost(1, {}), measured)],
    }


def budgets(
    choices: Choices, priced: list[Priced], axis: str, single: Cost, measured: list[Measured]
) -> list[dict[str, Any]]:
    """For each budget, a power of two of the cost of one solution, the best affordable way: of the vote alone, of all,
    and of each verifier.

    The vote is that of the largest n. Any other way is the best on all problems. Its accuracy and difference to the
    vote, and their intervals, are those of the choice: the best way on the problems of the other folds, on each fold's
    own problems, so that no luck of choosing is in them.
    """
    unit = getattr(single, axis)
    affordable = [entry for entry in priced if getattr(entry.cost, axis) is not None]
    affordable.sort(key=lambda entry: getattr(entry.cost, axis))  # of equally good ones the cheapest is taken
    if unit is None or not affordable:
        return []
    costs = np.array([getattr(entry.cost, axis) for entry in affordable])
    folds = np.arange(len(affordable[0].right)) % FOLDS
    by_fold = np.column_stack([np.bincount(folds, entry.right, FOLDS) for entry in affordable])
    groups = {"": np.array([entry.way.method == VOTE for entry in affordable]), ANY: np.ones(len(costs), bool)}
    groups |= {name: np.array([entry.way.verifier == name for entry in affordable]) for name in choices.verifiers}
    rows, votes = [], {}
    for power in range(int(np.ceil(np.log2(costs.max() / unit) - 1e-9)) + 1):
        for name, members in groups.items():
            within = np.flatnonzero(members & (costs <= unit * 2**power * (1 + 1e-9)))
            if not len(within) or (name and power not in votes):
                continue
            if not name:  # the vote has nothing to choose: all that the budget buys take part
                within = within[-1:]
            totals = by_fold[:, within].sum(axis=0)
            best, right = affordable[within[totals.argmax()]], np.empty(len(folds))
            for k in range(FOLDS):
                others = within[(totals - by_fold[k, within]).argmax()]
                right[folds == k] = affordable[others].right[folds == k]
            if not name:
                votes[power] = right
            row: dict[str, Any] = {"axis": axis, "solutions": 2**power, "budget": unit * 2**power, "group": name}
            row |= {**way_entry(best.way), **best.cost._asdict(), "best_accuracy": float(best.right.mean())}
            row |= {"accuracy": float(right.mean())}
            measured.append(Measured(row, "ci", right))
            if name:
                row["minus_vote"] = float((right - votes[power]).mean())
                measured.append(Measured(row, "minus_vote", right, votes[power]))
            rows.append(row)
    return rows
