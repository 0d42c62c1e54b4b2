"""The accuracies of evaluation.json as rows of tables, with names for readers, and the paper's numbers beside them.

The paper's methods stand in the order of its table; methods and aggregations that it does not have, in tables of their
own. Its numbers (arXiv 2406.14024; curves read off its figures) belong to a fine-tuned Mistral-7B and to GSM8K or
MATH500: the pattern compares, the level does not.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minos_ray.config.schema import AGGREGATIONS
from minos_ray.evaluation.comparison import SINGLE, headline_of

METHOD_NAMES = {
    "pass@1": "one sample",
    "pass@n": "perfect selection",
    "self-consistency": "self-consistency",
    "best-of-n": "best-of-n",
    "weighted-vote": "weighted vote",
    "critic-filtered-vote": "critic-filtered vote",
    "weighted-vote-mean": "highest mean score",
    "weighted-vote-log-odds": "vote weighted by log-odds",
    "critic-filtered-weighted-vote": "critic-filtered weighted vote",
    "critic-filtered-best-of-n": "critic-filtered best-of-n",
    "shrunk-vote": "shrunk vote",
    "top-vote": "vote among the top",
    "pessimistic": "pessimistic mean score",
}
# The paper's ways to choose (and the bounds); all others stand in a table of their own.
MAIN = ("pass@1", "pass@n", "self-consistency", "best-of-n", "weighted-vote", "critic-filtered-vote")
VERIFIER_NAMES = {"orm-base": "ORM", "prm-base": "PRM", "orm-minos": "Minos ORM", "prm-minos": "Minos PRM"}
VOTE = ("self-consistency", "")
ORDER = [
    ("pass@1", ""),
    VOTE,
    ("best-of-n", "orm-base"),
    ("best-of-n", "prm-base"),
    ("weighted-vote", "orm-base"),
    ("weighted-vote", "prm-base"),
    ("best-of-n", "orm-minos"),
    ("best-of-n", "prm-minos"),
    ("weighted-vote", "orm-minos"),
    ("weighted-vote", "prm-minos"),
]

PAPER_DATASETS = {"gsm8k": "GSM8K", "math": "MATH500"}
PAPER_SOURCE = "Gao et al., Math-Minos: a Mistral-7B fine-tuned on MetaMATH, 256 samples"

# (method, verifier) of evaluation.json -> accuracy in per cent on GSM8K and MATH500.
PAPER_TABLE: dict[tuple[str, str], dict[str, float]] = {
    ("self-consistency", ""): {"gsm8k": 84.1, "math": 34.6},
    ("best-of-n", "orm-base"): {"gsm8k": 86.2, "math": 35.9},
    ("best-of-n", "prm-base"): {"gsm8k": 87.1, "math": 36.7},
    ("weighted-vote", "orm-base"): {"gsm8k": 86.6, "math": 37.6},
    ("weighted-vote", "prm-base"): {"gsm8k": 86.8, "math": 37.8},
    ("best-of-n", "orm-minos"): {"gsm8k": 87.3, "math": 37.4},
    ("best-of-n", "prm-minos"): {"gsm8k": 87.6, "math": 37.8},
    ("weighted-vote", "orm-minos"): {"gsm8k": 88.2, "math": 38.3},
    ("weighted-vote", "prm-minos"): {"gsm8k": 87.8, "math": 38.6},
}

# Steps by type among about 10,000 labelled ones.
PAPER_ERRORS: dict[str, dict[str, int]] = {
    "gsm8k": {"unrelated": 79, "accumulation": 1566, "calculation": 1004, "logical": 914, "other": 218},
    "math": {"unrelated": 313, "accumulation": 2602, "calculation": 817, "logical": 2127, "other": 342},
}

# GSM8K accuracy (SC + Minos ORM) over the number of critiques; its 0 point is the plain ORM.
PAPER_SCALE: list[tuple[int, float]] = [
    (0, 86.2),
    (5_000, 86.3),
    (10_000, 86.7),
    (15_000, 87.2),
    (20_000, 87.2),
    (25_000, 87.8),
    (30_000, 88.2),
]

# F1 of the ORM on its evaluation set every 60 training steps.
PAPER_CONVERGENCE_STEPS = list(range(60, 901, 60))
THOUSANDTHS = {
    "orm-base": (633, 826, 850, 835, 843, 857, 859, 859, 857, 856, 858, 859, 859, 858, 859),
    "orm-minos": (698, 859, 861, 869, 873, 879, 874, 878, 880, 880, 881, 881, 880, 881, 881),
}
PAPER_CONVERGENCE = {name: [value / 1000 for value in values] for name, values in THOUSANDTHS.items()}


@dataclass(frozen=True)
class Difference:
    """A paired difference of accuracies, in shares (0.01 is one point)."""

    a: str
    b: str
    n: int
    value: float
    low: float
    high: float
    p: float | None = None

    @property
    def sign(self) -> int:
        """1 or -1 when the interval excludes zero, else 0."""
        return (self.low > 0) - (self.high < 0)

    def __neg__(self) -> "Difference":
        return Difference(self.b, self.a, self.n, -self.value, -self.high, -self.low, self.p)


@dataclass(frozen=True)
class Row:
    """One method at the headline n: accuracies are shares, `paper` is in per cent, `error` the Monte Carlo one."""

    method: str
    verifier: str
    n: int
    accuracy: float
    low: float
    high: float
    problems: int
    lead: Difference | None
    paper: float | None
    error: float | None = None

    @property
    def name(self) -> str:
        """The name in the table, as the paper has it."""
        verifier = VERIFIER_NAMES.get(self.verifier, self.verifier)
        titles = {"best-of-n": verifier, "weighted-vote": f"SC + {verifier}"}
        other = METHOD_NAMES.get(self.method, f"{self.method} {verifier}".strip())
        return titles.get(self.method) or first_upper(other)

    @property
    def recipe(self) -> str:
        """What is done, as short as it can be: `best-of-256, orm-base`."""
        short = {"pass@1": "pass@1", "pass@n": f"pass@{self.n}", "self-consistency": "majority vote"}
        short |= {"best-of-n": f"best-of-{self.n}", "critic-filtered-vote": "vote among accepted"}
        words = short.get(self.method, METHOD_NAMES.get(self.method, self.method))
        return f"{words}, {self.verifier}" if self.verifier else words

    @property
    def how(self) -> str:
        """What is done, in words: `weighted vote with prm-minos`."""
        return describe(self.method, self.verifier, self.n)

    @property
    def group(self) -> str:
        """`minos`, `base`, `vote`, `bound` or `other`: decides colour and rules of the table."""
        if self.method in {"pass@1", "pass@n"}:
            return "bound"
        if (self.method, self.verifier) == VOTE:
            return "vote"
        return group(self.verifier)

    @property
    def selects(self) -> bool:
        """Whether this is a method one can use: neither a single sample nor perfect selection."""
        return self.group != "bound"


@dataclass(frozen=True)
class AggregationRow:
    """One way to make one score of a PRM's step scores; accuracies as (value, low, high) by method."""

    verifier: str
    aggregation: str
    accuracies: dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Category:
    """The problems of one level, subject or the like: every method of the paper, and Minos minus base by Minos' key."""

    value: str
    problems: int
    rows: list[Row]
    gains: dict[str, Difference]

    def gain(self, row: Row) -> Difference | None:
        """Minos minus base for a method of Minos, else None."""
        return self.gains.get(key(row.method, row.verifier))


def group(verifier: str) -> str:
    """What a verifier starts from: `minos`, `base` or `other`."""
    return next((g for g in ("minos", "base") if verifier.endswith(f"-{g}")), "other")


def first_upper(text: str) -> str:
    """Only the first letter raised; acronyms stay."""
    return text[:1].upper() + text[1:]


def describe(method: str, verifier: str, n: int) -> str:
    """A method in words: `best-of-256 with orm-base`."""
    name = {"best-of-n": f"best-of-{n}", "pass@n": f"perfect selection (pass@{n})", "pass@1": "one sample (pass@1)"}
    words = name.get(method, METHOD_NAMES.get(method, method))
    return f"{words} with {verifier}" if verifier and verifier != "critic" else words


def key(method: str, verifier: str) -> str:
    """The name of a method in `paired`."""
    return f"{method}:{verifier}".rstrip(":")


def difference(evaluation: Mapping[str, Any], a: str, b: str, n: int) -> Difference | None:
    """The paired difference a - b at n, whichever way round it was written."""
    for entry in differences(evaluation):
        if entry.n == n and {entry.a, entry.b} == {a, b}:
            return entry if entry.a == a else -entry
    return None


def differences(evaluation: Mapping[str, Any]) -> list[Difference]:
    """All paired differences."""
    return [
        Difference(
            *(entry[side].rstrip(":") for side in ("a", "b")),
            *(entry[key] for key in ("n", "difference", "ci_low", "ci_high")),
            entry.get("p_value"),
        )
        for entry in evaluation["paired"]
    ]


def headline(evaluation: Mapping[str, Any]) -> int:
    """The number of candidates at which methods are compared."""
    return headline_of(evaluation["methods"])


def compared(evaluation: Mapping[str, Any]) -> str:
    """How many problems: `100`, or `98 of 100` where some have too few candidates to be compared."""
    n, everything = headline(evaluation), evaluation["counts"]["problems"]
    entering = next((m["problems"] for m in evaluation["methods"] if m["n"] == n and m["method"] != SINGLE), 0)
    return f"{entering}" if entering == everything else f"{entering} of {everything}"


def rows(evaluation: Mapping[str, Any], dataset: str = "gsm8k") -> list[Row]:
    """One row per method of the paper at the headline n, in its order; bounds first and last."""
    n = headline(evaluation)
    entries = [m for m in evaluation["methods"] if m["n"] == n and m["method"] in MAIN and m["method"] != SINGLE]
    entries += [m for m in evaluation["methods"] if m["method"] == SINGLE][-1:]
    table = sorted((row(evaluation, m, n, dataset) for m in entries), key=lambda r: (r.method, r.verifier))
    return sorted(table, key=lambda r: (r.method == "pass@n", place((r.method, r.verifier), ORDER)))


def row(evaluation: Mapping[str, Any], m: Mapping[str, Any], n: int, dataset: str) -> Row:
    """One entry of `methods` with its lead over the vote and the paper's number."""
    method, verifier = m["method"], m["verifier"] or ""
    return Row(
        method=method,
        verifier=verifier,
        n=n,
        accuracy=m["accuracy"],
        low=m["ci_low"],
        high=m["ci_high"],
        problems=m["problems"],
        lead=difference(evaluation, key(method, verifier), key(*VOTE), n),
        paper=PAPER_TABLE.get((method, verifier), {}).get(dataset),
        error=m.get("se"),
    )


def place(name: object, names: Iterable[object] = VERIFIER_NAMES) -> int:
    """Where a name stands among `names`, others behind."""
    return next((k for k, other in enumerate(names) if other == name), len(list(names)))


def further_rows(evaluation: Mapping[str, Any]) -> list[Row]:
    """One row per method that is not the paper's, at the headline n; by method, Minos after base."""
    n = headline(evaluation)
    entries = [m for m in evaluation["methods"] if m["n"] == n and m["method"] not in MAIN]
    further = [row(evaluation, m, n, "gsm8k") for m in entries]
    return sorted(further, key=lambda r: (place(r.method, METHOD_NAMES), r.method, place(r.verifier), r.verifier))


def aggregation_rows(evaluation: Mapping[str, Any]) -> list[AggregationRow]:
    """One row per PRM and aggregation, at the headline n."""
    entries = evaluation.get("aggregations", [])
    n = headline_of(entries)
    accuracies: dict[tuple[str, str], dict[str, tuple[float, float, float]]] = defaultdict(dict)
    for e in entries:
        if e["n"] == n:
            accuracies[e["verifier"], e["aggregation"]][e["method"]] = (e["accuracy"], e["ci_low"], e["ci_high"])
    aggregated = [AggregationRow(*pair, by_method) for pair, by_method in accuracies.items()]
    return sorted(aggregated, key=lambda r: (place(r.verifier), r.verifier, AGGREGATIONS.index(r.aggregation)))


def largest_error(evaluation: Mapping[str, Any]) -> float | None:
    """The largest Monte Carlo standard error of any method and n, None where none is stored."""
    return max((m["se"] for m in evaluation["methods"] if m.get("se") is not None), default=None)


def gains(evaluation: Mapping[str, Any]) -> list[Difference]:
    """Minos minus base at the headline n, per method of the paper and kind."""
    n = headline(evaluation)
    oriented = [d if d.a.endswith("-minos") else -d for d in differences(evaluation) if d.n == n]
    pairs = [d for d in oriented if d.a.partition(":")[0] in MAIN and d.a.replace("-minos", "-base") == d.b]
    return sorted(pairs, key=lambda d: d.a)


def categories(evaluation: Mapping[str, Any]) -> dict[str, list[Category]]:
    """By column (level, subject) its values, each with the accuracies and differences over its own problems."""
    n = headline(evaluation)
    tables = {}
    for column, values in evaluation.get("categories", {}).items():
        tables[column] = []
        for entry in values:
            size = {"problems": entry["problems"]}
            methods = [{**m, **size, "n": 1 if m["method"] == SINGLE else n} for m in entry["methods"]]
            part = {"methods": methods, "paired": [{**d, "n": n} for d in entry["paired"]]}
            value = "none given" if entry["value"] is None else entry["value"]
            tables[column].append(Category(value, entry["problems"], rows(part), {d.a: d for d in gains(part)}))
    return {column: values for column, values in tables.items() if values}


def gap_name(d: Difference) -> str:
    """`best-of-256, ORM`: what a Minos-minus-base difference is about."""
    method, _, verifier = d.a.partition(":")
    return f"{describe(method, '', d.n)}, {verifier.removesuffix('-minos').upper()}"


def best(candidates: Sequence[Row]) -> Row | None:
    """The verifier-based row with the highest accuracy."""
    usable = [r for r in candidates if r.selects and r.group != "vote"]
    return max(usable, key=lambda r: r.accuracy, default=None)


def paper_gains(dataset: str) -> dict[str, float]:
    """The paper's Minos minus base in points, under the same names as ours."""
    table = {f"{m}:{v}": values[dataset] for (m, v), values in PAPER_TABLE.items()}
    minos = [name for name in table if name.endswith("-minos")]
    return {name: round(table[name] - table[name.replace("-minos", "-base")], 1) for name in minos}


def paper_error_shares(dataset: str) -> dict[str, float]:
    """The share of each type among the paper's wrong steps."""
    counts = PAPER_ERRORS[dataset]
    return {kind: count / sum(counts.values()) for kind, count in counts.items()}
