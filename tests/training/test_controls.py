"""Plain text in place of critiques: as many tokens, no word of a critique, the loss on every token."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from minos_ray.config.schema import Config
from minos_ray.errors import UserError
from minos_ray.steps.encoding import encode_solutions
from minos_ray.store.columns import table
from minos_ray.store.run import Run
from minos_ray.training.base import base_tokenizer
from minos_ray.training.data import Data, require_rows, train_questions
from minos_ray.training.reward import reward_data
from minos_ray.training.sft import critic_job, critique_data, held_out_problems, plain_text
from tests.training.world import world


def rewrite(run: Run, name: str, rows: list[dict[str, Any]]) -> None:
    artefact = run.artefact(name)
    artefact.begin({"import": f"test {len(rows)}"})
    artefact.write_part("all", table(name, rows))
    artefact.complete({"rows": len(rows)})


def made(folder: Path, source: str) -> tuple[Config, Run]:
    """Problems with a solution, and critiques of every third candidate."""
    config, run = world(folder, sft={"source": source, "max_length": 256, "seed": 3})
    problems = run.artefact("problems").read().to_pylist()
    rewrite(run, "problems", [{**row, "solution": f"Step 1: it is\n{row['problem_id']}"} for row in problems])
    rewrite(run, "critiques", run.artefact("critiques").read().to_pylist()[::3])
    return config, run


def both(config: Config, run: Run) -> tuple[Data, Data]:
    tokenizer = base_tokenizer(config, run)
    critiques = critique_data(run, tokenizer, config.sft)
    return critiques, plain_text(run, tokenizer, config.sft, critiques)


@pytest.mark.parametrize("source", ["candidates", "solutions"])
def test_as_many_tokens_and_no_critique(tmp_path: Path, source: str) -> None:
    config, run = made(tmp_path, source)
    critiques, plain = both(config, run)
    more = sum(len(row["ids"]) for row in plain.train) - sum(len(row["ids"]) for row in critiques.train)
    assert 0 <= more < max(len(row["ids"]) for row in plain.train)
    assert plain.held_out == critiques.held_out and plain.sources == {source: len(plain.train)}
    assert not {row["problem_id"] for row in plain.train} & {row["problem_id"] for row in plain.held_out}
    assert all(row["positions"] == list(range(len(row["ids"]) - 1)) for row in plain.train)
    tokenizer = base_tokenizer(config, run)
    texts = [tokenizer.decode(row["ids"]) for row in plain.train]
    spared = {row["problem_id"] for row in plain.held_out}
    assert plain.dropped["held_out"] >= len(spared) > 0, "documents of problems that are watched are counted"
    assert not any("This step is" in text or "final answer" in text for text in texts)
    assert both(config, run)[1].train == plain.train
    # Every document before any comes again.
    distinct = len(set(texts))
    assert len(set(texts[:distinct])) == distinct


def test_candidates_are_those_that_have_a_critique(tmp_path: Path) -> None:
    config, run = made(tmp_path, "candidates")
    critiqued = set(run.artefact("critiques").read(["candidate_id"])["candidate_id"].to_pylist())
    labels = [row for row in run.artefact("labels").read().to_pylist() if row["candidate_id"] in critiqued]
    tokenizer, asked = base_tokenizer(config, run), train_questions(run)
    documents = [(asked[row["problem_id"]], row["steps"]) for row in labels if row["problem_id"] in asked]
    wanted = {(*found.ids, tokenizer.eos_token_id) for found in encode_solutions(tokenizer, documents)}
    critiques, plain = both(config, run)
    held_out = {row["problem_id"] for row in critiques.held_out}
    found = {tuple(row["ids"]) for row in plain.train}
    assert found <= wanted and len(found) > len(wanted) * 0.8 and held_out


def test_without_solutions_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    config, run = world(tmp_path, sft={"source": "solutions", "max_length": 256})
    with pytest.raises(UserError, match="sft: no rows to train on"):
        require_rows("sft", both(config, run)[1])


def test_stage_1_sees_no_problem_that_stage_2_holds_out(tmp_path: Path) -> None:
    config, run = world(tmp_path, inserted={"count": 0})
    tokenizer = base_tokenizer(config, run)
    job = critic_job(config.model_copy(update={"run": run.path}), run)
    held_out = {row["problem_id"] for row in reward_data(run, tokenizer, config.reward, "orm").held_out}
    seen = {
        problem for part in ("train", "held-out") for problem in problems_of(run, f"train/critiques-{part}.parquet")
    }
    assert held_out and seen and not held_out & seen
    assert job.table.dropped["held_out_in_stage_2"] > 0


def test_where_stage_2_has_nothing_left_stage_1_keeps_all(tmp_path: Path) -> None:
    config, run = world(tmp_path)
    assert held_out_problems(run, config.reward)
    assert held_out_problems(run, config.reward.model_copy(update={"eval_rows": 1000})) == set()


def problems_of(run: Run, name: str) -> set[str]:
    with run.fs.open_input_file(f"{run.root}/{name}") as source:
        return set(pq.read_table(source, columns=["problem_id"])["problem_id"].to_pylist())
