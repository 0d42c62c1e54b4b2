import pytest

from minos_ray.errors import UserError
from minos_ray.report.stage import gather, leading
from minos_ray.report.statement import costs, reaches, tokens
from minos_ray.store.run import Run
from tests.report.synthetic import config


def points(values: list[float]) -> list[dict[str, float]]:
    return [{"step": 10 * (k + 1), "f1": v} for k, v in enumerate(values)]


def test_reach_finds_the_first_step_of_each_with_bases_final_f1() -> None:
    (found,) = reaches({"orm-base": points([0.5, 0.82, 0.8]), "orm-minos": points([0.81, 0.83, 0.84])})
    assert (found.f1, found.last, found.base, found.minos) == (0.8, 30, 20, 10)
    (never,) = reaches({"orm-base": points([0.5, 0.8]), "orm-minos": points([0.6, 0.7])})
    assert never.minos is None


def test_tokens_are_summed_but_rates_are_not() -> None:
    assert tokens({"prompt_tokens": 5, "completion_tokens": 7, "tokens_per_second": 99.0}) == 12
    assert tokens({"seconds": 3}) is None


def test_the_sweeps_picture_shows_selection_first_and_never_the_ends_of_intervals() -> None:
    assert leading(["seconds", "f1", "weighted_vote_low", "weighted_vote"]) == ["weighted_vote", "f1"]
    assert leading(["seconds"]) == ["seconds"]


def test_costs_and_what_is_missing(full: Run) -> None:
    facts = gather(config(full.path), full)
    bought = next(c for c in costs(facts.manifests) if c.artefact == "critiques")
    assert (bought.seconds, bought.tokens, bought.usd) == (12.0, 90210 + 41999, 1.25)
    assert facts.missing == ["sweep/results.parquet"]


def test_without_an_evaluation_the_stage_to_run_is_named(copy: Run) -> None:
    copy.delete("evaluation.json.manifest.json")
    with pytest.raises(UserError, match="run the stage 'evaluate' first"):
        gather(config(copy.path), copy)
