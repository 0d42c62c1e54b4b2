"""Grading in processes that can be killed."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minos_ray.grading.child import Comparer
from minos_ray.grading.graders import Graded, Grader, Grading, Verdicts, gsm8k, math

TOWER = "9^{9^{9^{9^{9}}}}"


@pytest.fixture
def comparer() -> Iterator[Comparer]:
    comparer = Comparer("minos_ray.grading.same:same_value", 1.0)
    yield comparer
    comparer.close()


def test_verdicts_of_the_child(comparer: Comparer) -> None:
    assert comparer("\\frac{1}{2}", "0.5") is True
    assert comparer("\\frac{1}{2}", "0.6") is False
    assert comparer("2", "line one\nline two \u2028 = 2") in (True, False)


def test_endless_comparisons_are_killed_and_the_others_graded() -> None:
    texts = [f"\\boxed{{{TOWER}}}", "\\boxed{\\frac{10}{2}}", f"\\boxed{{{TOWER}}}", "\\boxed{4}", "none", "\\boxed{5}"]
    start = time.monotonic()
    with Grading(math, timeout_s=1.0) as grading:
        grades = grading(["5"] * len(texts), texts)
        child = grading.comparers[0].child
        again = grading(["5"], texts[:1])
    assert [g.status for g in grades] == ["timeout", "correct", "timeout", "wrong", "no_answer", "correct"]
    assert grades[0] == Graded(TOWER, False, "timeout") == again[0]
    assert time.monotonic() - start < 240, "the tower would take for ever"
    assert child is not None and child.returncode is not None


def test_a_child_that_something_else_kills_is_asked_again(comparer: Comparer, tmp_path: Path) -> None:
    """Idle, then in the middle of a comparison that would be over in time."""
    assert comparer("\\frac{1}{2}", "0.5") is True
    comparer.child.kill()
    assert comparer("\\frac{1}{2}", "0.5") is True
    napping, flag = Comparer(f"{__name__}:nap", 20.0), tmp_path / "napping"
    first = napping._start()

    def kill() -> None:
        while not flag.exists():
            time.sleep(0.01)
        first.kill()

    threading.Thread(target=kill, daemon=True).start()
    assert napping(str(flag), str(flag)) is True
    assert napping.child.pid != first.pid
    napping.close()


def nap(gold: str, answer: str) -> bool:
    """The truth; who is the first to be asked for it about a file makes the file and sleeps before."""
    if gold == answer and not Path(gold).exists():
        Path(gold).touch()
        time.sleep(60)
    return gold == answer


def test_workers_side_by_side_keep_the_order() -> None:
    values = list(range(40))
    with Grading(math, timeout_s=5.0, workers=2) as grading:
        grades = grading([str(n) for n in values], [f"\\boxed{{\\frac{{{2 * n}}}{{2}}}}" for n in values])
    assert [g.answer for g in grades] == [f"\\frac{{{2 * n}}}{{2}}" for n in values]
    assert all(g.correct for g in grades)


def test_the_child_ends_with_its_parent() -> None:
    code = (
        "from minos_ray.grading.child import Comparer\n"
        "import os, sys\n"
        "c = Comparer('minos_ray.grading.same:same_value', 2.0)\n"
        "c('1', '2')\n"
        "print(c.child.pid, flush=True)\n"
        f'c.child.stdin.write(\'["1", "{TOWER}"]\\n\'); c.child.stdin.flush()\n'
        "os._exit(1)\n"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300).stdout)
    deadline = time.monotonic() + 120
    while alive(pid):
        assert time.monotonic() < deadline, "the child outlived its parent and its limit"
        time.sleep(0.2)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_comparison_that_cannot_start_is_no_timeout() -> None:
    broken = Grader(str, str.__eq__, slow="minos_ray.grading.same:no_such_function")
    with Grading(broken, 1.0) as grading, pytest.raises(RuntimeError, match="no_such_function"):
        grading(["1"], ["2"])


def test_plain_functions_grade_too() -> None:
    def grader(gold: str, text: str) -> Graded:
        return Graded(text, gold in text, "correct" if gold in text else "wrong")

    with Grading(grader, 1.0) as grading:
        assert [g.correct for g in grading(["a", "b"], ["xa", "xx"])] == [True, False]


def test_rate_of_number_grading() -> None:
    """The floor is far below what one core does, so that a busy machine passes."""
    text = "Step 1: 16 - 3 - 4 = 9\nStep 2: 9 * 2 = $18\nThe answer is: 18"
    texts = [text.replace("18", str(n)) for n in range(5000)]
    start = time.process_time()
    with Grading(gsm8k, 1.0) as grading:
        grades = grading(["18"] * len(texts), texts)
    assert sum(g.correct for g in grades) == 1
    assert len(texts) / (time.process_time() - start) > 3000
    assert os.getpid() not in [c.child.pid for c in grading.comparers if c.child]


PATHOLOGICAL = {
    "tower": "9^{9^{9^9}}",
    "factorials": "((99999!)!)!",
    "nested fractions": "\\frac{1}{" * 150 + "x" + "}" * 150,
    "matrix": "\\begin{pmatrix}" + "\\\\".join("&".join("9" * 9) for _ in range(100)) + "\\end{pmatrix}^{-1}",
    "open braces": "{" * 1000 + "1" + "}" * 1000,
    "sum": "\\sum_{k=1}^{99999999} \\frac{1}{k^2}",
}


@pytest.mark.slow
def test_no_expression_stops_the_run() -> None:
    texts = [f"\\boxed{{{answer}}}" for answer in PATHOLOGICAL.values()]
    texts += ["\\boxed{" + "{" * 1500, "\\boxed{1}" * 12_000, "x" * 100_000, "\\boxed{\\frac{10}{2}}"]
    with Grading(math, timeout_s=0.5) as grading:
        grades = grading(["5"] * len(texts), texts)
    assert [grade.status for grade in grades[-4:]] == ["no_answer", "wrong", "no_answer", "correct"]
    assert "timeout" in {grade.status for grade in grades}
    assert not any(grade.correct for grade in grades[:-1])


def test_verdicts_are_bounded_and_the_longest_unused_go_first() -> None:
    verdicts = Verdicts(limit=2)
    verdicts.learn({("1", "1"): True, ("1", "2"): False})
    assert verdicts.recall([("1", "1"), ("9", "9")]) == {("1", "1"): True}
    verdicts.learn({("3", "3"): None})
    assert verdicts.recall([("1", "2"), ("1", "1"), ("3", "3")]) == {("1", "1"): True, ("3", "3"): None}


def test_more_pairs_in_one_call_than_are_remembered() -> None:
    with Grading(gsm8k, 1.0) as grading:
        grading.verdicts = Verdicts(limit=10)
        grades = grading(["7"] * 100, [f"#### {n}" for n in range(100)])
        assert [n for n, grade in enumerate(grades) if grade.correct] == [7]
        assert len(grading.verdicts.known) == 10


def test_strict_verdicts() -> None:
    with Grading(gsm8k, 1.0) as grading:
        assert grading.strict(["5", "5"], ["The answer is: 5", "#### 5"]) == [True, False]
    with Grading(Grader(str, str.__eq__), 1.0) as grading:
        assert grading.strict(["5", "5"], ["5", "6"]) == [True, False]
