"""What the steps after the first error are worth, and whether two label sources agree on that error. Pure.

Labels are 1 (right), 0 (wrong) and -1 (unlabelled). Error types are "" for a right step; [] when nobody knows them.
"""

from collections.abc import Sequence

INHERITED = "accumulation"


def first_error(labels: Sequence[int]) -> int | None:
    """Index of the first wrong step, None when none is wrong; unlabelled steps are passed over."""
    return next((step for step, label in enumerate(labels) if label == 0), None)


def after_first_error(labels: Sequence[int], errors: Sequence[str], policy: str) -> tuple[list[int], list[str]]:
    """Labels and error types under a policy for the steps after the first wrong one; up to it nothing changes.

    `keep`: what the source says (Math-Shepherd and the paper). `mask`: unlabelled (PRM800K, Qwen2.5-Math-PRM).
    `inherited`: wrong, of the type `accumulation`.
    """
    first = first_error(labels)
    if policy == "keep" or first is None:
        return list(labels), list(errors)
    label, error = {"mask": (-1, ""), "inherited": (0, INHERITED)}[policy]
    following = len(labels) - first - 1
    return [*labels[: first + 1], *[label] * following], [*errors[: first + 1], *[error] * following] if errors else []
