"""Consensus of the step labels with the critic: PRM rows on whose first error both agree (Qwen2.5-Math-PRM)."""

from collections import Counter
from collections.abc import Sequence

from minos_ray.config.load import resolve
from minos_ray.critiques.prompts import EXAMPLE
from minos_ray.errors import UserError
from minos_ray.steps.policy import first_error
from minos_ray.store.columns import Row
from minos_ray.store.run import Run

COLUMNS = ["candidate_id", "prompt_version", "status", "step_verdicts"]


def agreed(run: Run, rows: Sequence[Row], dropped: Counter[str]) -> list[Row]:
    """The rows whose critique finds the same first error as their step labels, or none like them.

    Rows without step labels stay: they are left out later, for that reason.
    """
    critiques = run.artefact("critiques").read(COLUMNS).to_pylist()
    for prompt in sorted({critique["prompt_version"].partition("@")[0] for critique in critiques}):
        refuse_told(prompt)
    by_candidate = {critique["candidate_id"]: critique for critique in critiques}
    kept = []
    for row in rows:
        reason = disagreement(row["step_labels"], by_candidate.get(row["candidate_id"]))
        if reason:
            dropped[reason] += 1
        else:
            kept.append(row)
    return kept


def disagreement(labels: Sequence[int], critique: Row | None) -> str | None:
    """Why a row is not kept."""
    if all(label < 0 for label in labels):
        return None
    if critique is None:
        return "consensus_no_critique"
    if critique["status"] != "ok":
        return f"consensus_critique_{critique['status']}"
    return None if first_error(critique["step_verdicts"]) == first_error(labels) else "no_consensus"


def refuse_told(prompt: str) -> None:
    """UserError when a prompt shows the step labels: the critic would agree because it was told to.

    Found by trying: the prompt is asked with other labels. Critiques that were imported name no prompt function.
    """
    if ":" not in prompt:
        return
    ask = resolve(prompt)
    if ask(EXAMPLE) != ask(EXAMPLE._replace(step_labels=[0, 0])):
        raise UserError(
            f"reward.consensus: the critiques were made with {prompt}, which shows the critic the step labels; make "
            "them with critique.prompt = minos_ray.critiques.prompts:blind, or set reward.consensus to false"
        )
