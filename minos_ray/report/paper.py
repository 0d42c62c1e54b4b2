"""Numbers of the Math-Minos paper (arXiv 2406.14024; curves read off its figures), shown beside ours.

They belong to a fine-tuned Mistral-7B and to GSM8K or MATH500: the pattern compares, the level does not.
"""

DATASETS = {"gsm8k": "GSM8K", "math": "MATH500"}
SOURCE = "Gao et al., Math-Minos: a Mistral-7B fine-tuned on MetaMATH, 256 samples"

# (method, verifier) of evaluation.json -> accuracy in per cent on GSM8K and MATH500.
TABLE: dict[tuple[str, str], dict[str, float]] = {
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
ERRORS: dict[str, dict[str, int]] = {
    "gsm8k": {"unrelated": 79, "accumulation": 1566, "calculation": 1004, "logical": 914, "other": 218},
    "math": {"unrelated": 313, "accumulation": 2602, "calculation": 817, "logical": 2127, "other": 342},
}

# GSM8K accuracy (SC + Minos ORM) over the number of critiques; its 0 point is the plain ORM.
SCALE: list[tuple[int, float]] = [
    (0, 86.2),
    (5_000, 86.3),
    (10_000, 86.7),
    (15_000, 87.2),
    (20_000, 87.2),
    (25_000, 87.8),
    (30_000, 88.2),
]

# F1 of the ORM on its evaluation set every 60 training steps.
CONVERGENCE_STEPS = list(range(60, 901, 60))
THOUSANDTHS = {
    "orm-base": (633, 826, 850, 835, 843, 857, 859, 859, 857, 856, 858, 859, 859, 858, 859),
    "orm-minos": (698, 859, 861, 869, 873, 879, 874, 878, 880, 880, 881, 881, 880, 881, 881),
}
CONVERGENCE = {name: [value / 1000 for value in values] for name, values in THOUSANDTHS.items()}


def accuracy(dataset: str, method: str, verifier: str) -> float | None:
    """The paper's accuracy in per cent, None where it has no such row."""
    return TABLE.get((method, verifier), {}).get(dataset)


def error_shares(dataset: str) -> dict[str, float]:
    """The share of each type among the paper's wrong steps."""
    counts = ERRORS[dataset]
    return {kind: count / sum(counts.values()) for kind, count in counts.items()}
