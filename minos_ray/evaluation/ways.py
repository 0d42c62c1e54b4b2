"""Every way to choose with what it comes to: votes that false positives fool less, adaptive n, selective answering; and
what each costs in generated tokens and FLOPs of solving and verifying, with the best choice for each budget.

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
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow.fs as pafs

from minos_ray.config.load import Config
from minos_ray.config.schema import Model
from minos_ray.errors import UserError
from minos_ray.evaluation.choices import CONFIDENCES, POWERS, Answered, Choices, Way
from minos_ray.evaluation.comparison import Method, Outcomes
from minos_ray.evaluation.selection import CRITIC, JUDGES
from minos_ray.evaluation.statistics import Measured
from minos_ray.graph.specs import critic_chosen
from minos_ray.store.model_files import is_hub_id, locate
from minos_ray.store.run import Run

FOLDS = 5
BEST = "best-of-n"  # as a power: infinity
VOTE = "self-consistency"
ROBUST = ("shrunk-vote", "top-vote", "pessimistic")
COVERAGES = {0.5: 50, 0.8: 80}  # per cent
CURVE = tuple(step / 20 for step in range(1, 21))
Columns = dict[Way, np.ndarray]
AXES = ("tokens", "flops")
ANY = "any"  # of `verifier` in a budget: the best of all


def shrunk(choices: Choices, answered: Answered, rivals: Columns) -> tuple[Columns, dict[str, list[float | str]]]:
    """Outcomes of the shrunk vote, and its powers by verifier and n.

    The power for a problem is the best one on the problems of the other `FOLDS` - 1 folds, so that no problem takes
    part in choosing its own (a single problem has the plain vote); of equal ones the lowest, which is nearest to the
    vote. The powers that are returned are the best on all problems. Among fewer than three candidates all above 0 are
    best-of-n, and there are no rows.
    """
    chosen: Columns = {}
    powers: dict[str, list[float | str]] = {}
    fold = np.arange(len(answered.tokens)) % FOLDS
    for v, name in enumerate(choices.verifiers):
        powers[name] = []
        for j, n in enumerate(choices.ns):
            if n < 3:
                continue
            values = np.column_stack([answered.shrunk[:, v, :, j], rivals[Way(BEST, name, n, n)]])
            picked = np.empty(len(values))
            for k in range(FOLDS):
                picked[fold == k] = values[fold == k, int(values[fold != k].sum(axis=0).argmax())]
            chosen[Way("shrunk-vote", name, n, n)] = picked
            place = int(values.mean(axis=0).argmax())
            powers[name].append(BEST if place == values.shape[1] - 1 else POWERS[place])
    return chosen, powers


def robust(choices: Choices, answered: Answered, measured: list[Measured]) -> tuple[dict[str, Any], Columns]:
    """`robust` of evaluation.json: every robust method at every n: accuracy, and the difference to the better of vote
    and best-of-n, all on the same orders, with intervals at `headline` alone; and the n at which each does worst
    against that. Also the outcomes of all ways.
    """
    rivals = dict(zip(choices.ways(), answered.outcomes.T, strict=True))
    chosen, powers = shrunk(choices, answered, rivals)
    columns = rivals | chosen
    rows, worst = [], {}
    for way in (way for way in columns if way.method in ROBUST):
        vote, best = columns[Way(VOTE, "", way.n, 0)], columns[Way(BEST, way.verifier, way.n, way.n)]
        better = vote if vote.mean() >= best.mean() else best
        gap = float((columns[way] - better).mean())
        rows.append({**way_entry(way), "accuracy": float(columns[way].mean()), "minus_better": gap})
        if way.n == choices.headline:
            measured += [Measured(rows[-1], "ci", columns[way])]
            measured += [Measured(rows[-1], "minus_better", columns[way], better)]
        key = f"{way.method}{way.top or ''}:{way.verifier}"
        if key not in worst or gap < worst[key]["minus_better"]:
            worst[key] = {"n": way.n, "minus_better": gap}
    ns = [n for n in choices.ns if n > 2]
    return {"orders": choices.orders, "ns": ns, "powers": powers, "methods": rows, "worst": worst}, columns


def way_entry(way: Way) -> dict[str, Any]:
    """A way as keys of an entry; `top` where it has one."""
    return {key: value for key, value in way._asdict().items() if key != "top" or way.top}


def adaptive_rows(
    choices: Choices, answered: Answered, columns: Columns, measured: list[Measured]
) -> list[dict[str, Any]]:
    """For each confidence: accuracy, samples and tokens saved, and the difference to the vote of all `headline`."""
    vote, tokens, rows = columns[Way(VOTE, "", choices.headline, 0)], np.nan_to_num(answered.tokens, nan=1.0), []
    for k, confidence in enumerate(CONFIDENCES):
        right, used = answered.stopped[:, k], answered.used[:, k]
        row = {"confidence": confidence, "n": choices.headline, "accuracy": float(right.mean())}
        row |= {"samples": float(used.mean()), "minus_vote": float((right - vote).mean())}
        row["saved_tokens"] = float(1 - (used @ tokens) / (choices.headline * tokens.sum()))
        measured += [Measured(row, "ci", right), Measured(row, "minus_vote", right, vote)]
        rows.append(row)
    return rows


def selective_rows(choices: Choices, answered: Answered, measured: list[Measured]) -> list[dict[str, Any]]:
    """Selective answering at `headline`: the risk (share of wrong answers) when only the surest problems are answered.

    `area` is the mean risk over all coverages 1 / problems, 2 / problems, ..., 1 (Geifman et al., 1805.08206);
    `coverage` and `risk` are points of the curve. Accuracies have intervals, with the surest problems fixed.
    """
    rows: list[dict[str, Any]] = []
    for k, (method, name) in enumerate(choices.abstaining()):
        risk, order = risks(answered.confidence[:, k], answered.chosen[:, k])
        counts = {coverage: max(1, round(coverage * len(risk))) for coverage in (*CURVE, *COVERAGES)}
        row = {"method": method, "verifier": name, "n": choices.headline, "area": float(risk.mean())}
        rows.append(row | {"coverage": list(CURVE), "risk": [float(risk[counts[c] - 1]) for c in CURVE]})
        for coverage, percent in COVERAGES.items():
            count = counts[coverage]
            rows[-1][f"accuracy_at_{percent}"] = float(1 - risk[count - 1])
            values = selected_values(answered.confidence[order, k], answered.chosen[order, k], count)
            measured.append(Measured(rows[-1], f"accuracy_at_{percent}", values))
    return rows


def selected_values(confidence: np.ndarray, right: np.ndarray, count: int) -> np.ndarray:
    """[problems], the surest first: values with the mean and the sampling error of the accuracy on the surest `count`.

    Problems as sure as the last of these are answered in random order: each counts by the share of them that is
    answered. NaN for those that are less sure.
    """
    surer, as_sure = confidence > confidence[count - 1], confidence == confidence[count - 1]
    weights = surer + as_sure * (count - surer.sum()) / as_sure.sum()
    accuracy = weights @ right / count
    # The ratio of two sums, as a mean: its terms are linear in the weights.
    values = accuracy + (weights > 0).sum() / count * weights * (right - accuracy)
    return np.where(weights > 0, values, np.nan)


def risks(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[problems]: the share of wrong ones among the surest 1, 2, ..., all; and the problems, the surest first.

    Equally sure problems are answered in random order: their outcomes count as their mean.
    """
    order = np.argsort(-confidence, kind="stable")
    levels = np.unique(-confidence, return_inverse=True)[1]
    mean = (np.bincount(levels, right) / np.bincount(levels))[levels]
    return 1 - np.cumsum(mean[order]) / np.arange(1, len(right) + 1), order


def contents(choices: Choices, outcomes: Outcomes, measured: list[Measured]) -> tuple[dict[str, Any], Columns]:
    """`robust`, `adaptive` and `selective` of evaluation.json, and the outcomes of all ways for what follows.

    Rows whose intervals are still to be filled are added to `measured`.
    """
    answered = choices.joined()
    content, columns = robust(choices, answered, measured)
    # Beside the methods of `methods`, which have more orders or are exact.
    compared = ~np.isnan(outcomes[Method(VOTE, "", choices.headline)])
    entering = slice(None) if compared.all() else compared  # where it is all of them, nothing is copied
    columns |= {
        Way(method.name, method.verifier, method.n, method.n if method.verifier else 0): values[entering]
        for method, values in outcomes.items()
        if not method.aggregation and not method.name.startswith("pass@") and method.n <= choices.headline
    }
    adaptive = adaptive_rows(choices, answered, columns, measured)
    selective = selective_rows(choices, answered, measured)
    return {"robust": content, "adaptive": adaptive, "selective": selective}, columns


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
    critic, samples = run.artefact("scores/critic").manifest(), config.score.judge.samples if config.score.judge else 1
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
        # Names and shapes of the tensors, from the headers of safetensors files.
        infos = [info for info in files.get_file_info(pafs.FileSelector(folder)) if info.extension == "safetensors"]
        shapes = []
        for info in infos:
            with files.open_input_file(info.path) as source:
                header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
            shapes += [(name, tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"]
        if not shapes:
            return None
        heads, hidden = facts["num_attention_heads"], facts["hidden_size"]
        experts = facts.get("num_local_experts") or facts.get("num_experts") or 1
        working = facts.get("num_experts_per_tok", experts) / experts
        table = [shape for _, shape in shapes if shape == [facts["vocab_size"], hidden]]
        weights = sum(np.prod(s) * (working if ".experts." in name else 1) for name, s in shapes)
        weights += facts["vocab_size"] * hidden * (bool(writes) - len(table))
        return Size(int(weights), facts["num_hidden_layers"], heads * (facts.get("head_dim") or hidden // heads))
    except (OSError, UserError, KeyError, ValueError):
        return None


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
