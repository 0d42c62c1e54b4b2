"""GenRM critiques: verdicts in the forms that the real data has, and the import of made and real files."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.errors import UserError
from minos_ray.imports import bring
from minos_ray.imports.genrm import COLUMNS, PUBLISHED, read_verdict, training_text
from minos_ray.store import columns
from minos_ray.store.run import Run
from tests.imports.files import found_again

STEPS = "**Verification:**\n\nStep 1: 2 * 5 = 10 pens. (Correct)\n\n"
VERDICTS = [
    # critique, right, how
    (STEPS + "**Final Grade:**\n\nVerification: Is the answer correct (Yes/No)? Yes", True, "stated"),
    (STEPS + "**Final Grade:** Verification: Is the answer correct (Yes/No)? **No**", False, "stated"),
    (STEPS + "**Verification: Is the answer correct (Yes/No)? Yes**", True, "stated"),
    (STEPS + "**Verification: Is the answer correct (Yes/No)?**\n\nNo", False, "stated"),
    (STEPS + "**Verification: Is the answer correct? (Yes/No)** No.", False, "stated"),
    (STEPS + "<b>Verification:</b>\nIs the answer correct (Yes/No)? <b>Yes</b>", True, "stated"),
    (STEPS + "Verification: Is the answer correct? Yes", True, "stated"),
    (STEPS + "Verification: Is the answer correct? (No/Yes) No.\n\nFinal Grade: 50%", False, "stated"),
    (STEPS + "Verification: Is the answer correct (Yes/No)? No\n(The solution is wrong in step 2.)", False, "stated"),
    (STEPS + "Verification: Is the answer correct (Yes/Yes)? Yes", True, "stated"),
    (STEPS + "**Verification:** Is the answer correct? (Yes/No) Yes\n\n**Final Grade:** 4/4", True, "stated"),
    (STEPS + "**Final Grade:** Verification: Yes", True, "stated"),
    (STEPS + "**Final Grade: No**\n\nExplanation: the sum is 12.", False, "stated"),
    (STEPS + "Final Grade: Verification: Correct (Yes/No)? Yes", True, "stated"),
    (STEPS + "**Conclusion:**\n\nThe solution is correct.", True, "stated"),
    ("Is the answer correct (Yes/No)? Yes\n\nIs the answer correct (Yes/No)? No", False, "stated"),
    ("Step 2: 3 + 3 = 7. **(Incorrect)**\n\n**Step 3:** So there are 7 pens and", False, "implied"),
    (
        "Step 2: 3 + 3 = 7.\n**Verification: No**\n\n**Final Grade:**\nVerification: Is the answer correct (Yes",
        False,
        "implied",
    ),
    (STEPS + "**Final Grade:**\nVerification: Is the answer correct (Yes/No)", None, "no verdict"),
    (STEPS + "Verification: Is the answer correct? (Yes)", True, "stated"),
    (STEPS + "**Verification:** Is the answer correct? (Yes/No)\n**Answer:** Yes", True, "stated"),
    (STEPS + "**Final Grade:**\nVerification: Is the answer correct (Yes/No)? N/A", None, "cut off"),
    (STEPS + "Step 2: the solution then adds the", None, "cut off"),
    (STEPS + "The answer is 10.", None, "no verdict"),
    ("", None, "cut off"),
    (STEPS + "**Grade:** Verification: Yes.", True, "stated"),
    (STEPS + "**Grading:**\n\n**Verification:** Incorrect", False, "stated"),
    (STEPS + "**Overall Verification: No**\n\n**Final Grade: 0/4**", False, "stated"),
    (STEPS + "**Grade:** Yes\n\nStep 2: so he", None, "cut off"),
    (STEPS + "**Final Grade: Verification: Yes/Yes**", True, "stated"),
    (STEPS + "Is the answer correct (Yes/Yes)? Yes\n\nIs the answer correct (Yes/No)? No", False, "stated"),
    (STEPS + "**Verification: Is the answer correct? Yes/No**\n\n**Verification: Yes.**", True, "stated"),
    (STEPS + "**Conclusion:** The solution is not correct. The final answer should be", False, "stated"),
    (STEPS + "**Final Answer:** 10\n**Verification:** The final answer is correct.\n\n**Verification:", True, "stated"),
    (STEPS + "The final answer is incorrect. It should be 12.", False, "stated"),
]


@pytest.mark.parametrize(("critique", "right", "how"), VERDICTS)
def test_verdicts(critique: str, right: bool | None, how: str) -> None:
    verdict = read_verdict(critique)
    assert (verdict.right, verdict.how) == (right, how)


@given(st.text())
def test_any_text_has_a_verdict_or_none(text: str) -> None:
    verdict = read_verdict(text)
    made = training_text(text, verdict)
    assert (verdict.right is None) or made.endswith(f"The final answer is {verdict.right}.")


def test_training_text_ends_in_our_words() -> None:
    critique = STEPS + "**Final Grade:**\n\nVerification: Is the answer correct (Yes/No)? **Yes**"
    expected = "Verification:\nStep 1: 2 * 5 = 10 pens. (Correct)\nThe final answer is True."
    assert training_text(critique, read_verdict(critique)) == expected
    cut = "Step 2: 3 + 3 = 7. (Incorrect)\n\n**Step 3:** So there are 7 pens and"
    assert training_text(cut, read_verdict(cut)) == "Step 2: 3 + 3 = 7. (Incorrect)\nThe final answer is False."
    unread = STEPS + "Step 2: the solution"
    assert training_text(unread, read_verdict(unread)) == unread


def row(question: int, index: int, **changes: Any) -> dict[str, Any]:
    """A row as the real files have it; odd candidates are wrong and the critic says yes to everything."""
    right = index % 2 == 0
    made = {"question_id": question, "question": f"What is {question} + 0?", "target": str(question)}
    made |= {"candidate_id": index, "solution": f"We add 0.\nThe answer is {question if right else 999}."}
    critique = STEPS + "Verification: Is the answer correct (Yes/No)? Yes"
    return made | {"extracted_answer": "1", "correct": right, "critique": critique} | changes


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two parts; question 3 is in both, one row is repeated and one has no critique."""
    folder = tmp_path / "source"
    folder.mkdir()
    first = [row(question, index) for question in range(4) for index in range(3)]
    second = [row(3, 3), row(3, 0), row(5, 0), row(5, 1, critique=None), row(5, 2, critique="Step 1: cut")]
    first[0]["critique"] = f"<think>\nIs the answer correct (Yes/No)? No\n</think>\n\n{first[0]['critique']}"
    first[0]["solution"] = f"<think>\nWe add 1?\n</think>\n\n{first[0]['solution']}"
    for name, rows in {"part-0.parquet": first, "part-1.parquet": second}.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    return folder


def test_import_of_two_parts(source: Path, tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    manifests = {m.artefact: m for m in bring("genrm", str(source), run, test_fraction=0.4)}
    assert manifests["problems"].counts == {"rows": 5, "train": 3, "test": 2}
    dropped = {"repeated candidate_id": 1, "empty critique": 1}
    for name in ("candidates", "labels", "critiques"):
        assert manifests[name].counts["rows"] == 15 and manifests[name].dropped == dropped
        columns.validate(name, run.artefact(name).read())
    assert manifests["labels"].counts["correct"] == 10 and manifests["labels"].counts["wrong"] == 5
    assert manifests["critiques"].counts["verdict stated"] == 14
    assert manifests["critiques"].counts["verdict cut off"] == 1
    critiques = {r["candidate_id"]: r for r in run.artefact("critiques").read().to_pylist()}
    assert critiques["gsm8k-gemini-0/0"]["agrees"] and not critiques["gsm8k-gemini-0/1"]["agrees"]
    assert critiques["gsm8k-gemini-5/2"]["status"] == "unparsable"
    assert critiques["gsm8k-gemini-5/2"]["final_verdict"] is None and not critiques["gsm8k-gemini-5/2"]["agrees"]
    assert not any("think" in row["text"] for row in critiques.values())
    labels = {r["candidate_id"]: r for r in run.artefact("labels").read().to_pylist()}
    assert labels["gsm8k-gemini-0/0"]["steps"] == labels["gsm8k-gemini-0/2"]["steps"]
    assert labels["gsm8k-gemini-2/1"]["steps"] == ["We add 0.", "The answer is 999."]
    assert labels["gsm8k-gemini-2/1"]["step_labels"] == [-1, -1]
    assert found_again(run) == 1
    assert labels["gsm8k-gemini-2/1"]["status"] == "wrong" and labels["gsm8k-gemini-2/1"]["answer"] == "999"


def published(row: dict[str, Any]) -> dict[str, Any]:
    """The row under the names of the published files, with the prompt that shows the reference solution."""
    names = zip(COLUMNS, PUBLISHED, strict=True)
    prompt = f"Grade it.\nQuestion: {row['question']}\nSolution: {row['solution']}\nExpected Answer: We add."
    return {
        **{theirs: row[ours] for ours, theirs in names},
        "correctness": int(row["correct"]),
        "verifier_prompt": prompt,
    }


def test_published_files_give_the_same_artefacts(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    for path in sorted(source.iterdir()):
        lines = [json.dumps(published(row)) for row in pq.read_table(path).to_pylist()]
        text = "\n".join([*lines, "{torn"] if path.stem == "part-1" else lines)
        (folder / f"{path.stem}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    runs = [Run(str(tmp_path / name)) for name in ("parquet", "jsonl")]
    for run, src in zip(runs, (source, folder), strict=True):
        bring("genrm", str(src), run)
    for name in ("candidates", "labels", "critiques"):
        first, second = (run.artefact(name) for run in runs)
        assert first.read().equals(second.read())
        assert second.manifest().dropped == {**first.manifest().dropped, "not valid JSON": 1}
    questions = [run.artefact("problems").read().to_pylist() for run in runs]
    assert [{**row, "solution": "We add."} for row in questions[0]] == questions[1]


def test_the_split_is_by_question_and_nested(source: Path, tmp_path: Path) -> None:
    splits = {}
    for questions in (None, 3):
        run = Run(str(tmp_path / f"run{questions}"))
        bring("genrm", str(source), run, questions=questions, test_fraction=0.4, seed=1)
        rows = run.artefact("problems").read(["problem_id", "split"]).to_pylist()
        splits[questions] = {r["problem_id"]: r["split"] for r in rows}
        known = set(run.artefact("candidates").read(["problem_id"])["problem_id"].to_pylist())
        assert known == set(splits[questions])
    assert len(splits[3]) == 3 and set(splits[3]) < set(splits[None])


def test_an_import_is_fresh_for_the_stages(source: Path, tmp_path: Path) -> None:
    from minos_ray.config.load import Config
    from minos_ray.graph.state import status

    run = Run(str(tmp_path / "run"))
    bring("genrm", str(source), run)
    states = {s.artefact: s for s in status(Config(run=run.path, base={"model": "none"}), run)}
    for name in ("problems", "candidates", "labels", "critiques"):
        assert (states[name].state, states[name].why) == ("done", "imported")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fraction": 0.5}, "'fraction'; accepted: .*did you mean 'test_fraction'"),
        ({"test_fraction": 2}, "between 0 and 1"),
    ],
)
def test_options_that_are_refused(source: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        bring("genrm", str(source), Run(str(tmp_path / "run")), **options)
    assert not (tmp_path / "run").exists()


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question_id": [1], "question": ["x"]}), tmp_path / "part.parquet")
    with pytest.raises(UserError, match="no column 'target'; it has question_id, question"):
        bring("genrm", str(tmp_path / "part.parquet"), Run(str(tmp_path / "run")))


def test_real_part(tmp_path: Path, shared_data: Path) -> None:
    """8,321 wrong candidates, whose critiques are longer and so cut off more often than the others (2.3 % of all)."""
    run = Run(str(tmp_path / "run"))
    made = {m.artefact: m for m in bring("genrm", str(shared_data / "gsm8k_gemini" / "part-3.parquet"), run)}
    counts = made["critiques"].counts
    assert counts["rows"] == 8321 == sum(n for name, n in counts.items() if name.startswith("verdict"))
    assert (counts["verdict stated"] + counts["verdict implied"]) / 8321 > 0.96
    assert counts["agrees"] / 8321 > 0.9
    assert made["problems"].counts == {"rows": 622, "train": 560, "test": 62}
    assert made["labels"].counts["given label differs from our grader"] < 0.01 * 8321
    texts = run.artefact("critiques").read(["text", "status"]).to_pylist()
    assert all(
        r["text"].splitlines()[-1].startswith("The final answer is ") for r in texts if r["status"] != "unparsable"
    )
