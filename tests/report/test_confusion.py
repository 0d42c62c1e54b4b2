"""What the critic says of error types, in the report: table, matrix, accuracy."""

import json

import pytest

from minos_ray.config.schema import ERROR_TYPES
from minos_ray.evaluation.verdicts import by_critic
from minos_ray.report.figures import confusion
from minos_ray.report.results import paper_error_shares
from minos_ray.report.statement import type_rows
from minos_ray.store.run import Run
from tests.report.synthetic import put_evaluation
from tests.report.test_page import Page, page

ROWS = [
    *[
        {"source": "inserted", "known": kind, "type": kind, "status": "ok"}
        for kind in ERROR_TYPES[:4]
        for _ in range(9)
    ],
    *[{"source": "inserted", "known": "logical", "type": "other", "status": "ok"} for _ in range(4)],
    *[{"source": "candidate", "known": None, "type": "accumulation", "status": "ok"} for _ in range(13)],
    {"source": "candidate", "known": None, "type": None, "status": "unreadable_line"},
]


def test_rows_beside_the_papers_shares() -> None:
    rows = {row.kind: row for row in type_rows(by_critic(ROWS), paper_error_shares("gsm8k"))}
    assert rows["accumulation"].steps == {"candidate": 13, "inserted": 9}
    assert rows["accumulation"].shares["candidate"] == 1 and rows["logical"].shares["inserted"] == pytest.approx(9 / 40)
    assert rows["accumulation"].paper == pytest.approx(1566 / 3781)
    assert type_rows(None, paper_error_shares("gsm8k")) == []


def test_the_matrix_shows_every_number_and_leaves_out_types_that_were_not_inserted() -> None:
    drawn = str(confusion(by_critic(ROWS)["confusion"]))
    assert drawn.count(">9</text>") == 4 and ">4</text>" in drawn
    assert drawn.count(">other</text>") == 1 and drawn.count(">logical</text>") == 2
    assert confusion({}) is None


def test_the_page_has_them_where_the_critic_was_asked(copy: Run) -> None:
    assert "Sorted by the critic" not in page(copy)
    values = json.loads(copy.read_bytes("evaluation.json"))
    values["errors"]["critic"] = by_critic(ROWS)
    put_evaluation(copy, values)
    found = Page(page(copy))
    assert found.open == [] and found.tags["svg"] == 10
    assert "Of 40 wrong steps" in found.text and "90.0 %" in found.text and "unreadable line 1" in found.text
    assert "train candidates" in found.text and "inserted errors" in found.text
