"""What the critic is shown, and that the offline critic reads it back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.critiques.prompts import Case, answer_guided, blind, chat, label_aware, plain
from minos_ray.critiques.stage import critique
from minos_ray.miniature.critic_server import Teacher, read_prompt
from minos_ray.steps.critique_text import parse_critique
from tests.critiques.scripted import MakeConfig, MakeRun, Reply, Serve

STEPS = ["Step 1: 3 + 4 = 7", "7 * 2 =\n 15", "The answer is: 15"]
SOLUTION = "3 + 4 = <<3+4=7>>7 apples\n\nTwice that is 7 * 2 = <<7*2=14>>14 apples.\n#### 14"
CASE = Case("How many?", STEPS, [1, 0, 0], False, "14", SOLUTION)
ALL = [label_aware, answer_guided, blind]


def content(messages: list[dict[str, str]]) -> str:
    """The text of the one message."""
    [message] = messages
    assert message["role"] == "user"
    return message["content"]


def test_every_step_stands_with_its_label_and_the_answer_with_the_final_one() -> None:
    block = "[Question]\nHow many?\n\n[Solution]\nStep 1: 3 + 4 = 7 Label: True\nStep 2: 7 * 2 = 15 Label: False\n"
    shown = content(label_aware(CASE._replace(step_labels=[1, 0, 1])))
    assert block + "The answer is: 15 Label: False\n" in shown
    assert "14" not in shown, "labels are all that is given away"


@pytest.mark.parametrize("prompt", ALL)
def test_the_critic_is_told_the_form_that_the_parser_wants(prompt: Any) -> None:
    shown = content(prompt(CASE))
    for part in ("the 2 steps", "`Step k:`", "`This step is correct.`", "`This step is incorrect.`"):
        assert part in shown
    task = " ".join(shown.split())
    assert "exactly `The final answer is True.`" in task and "exactly `The final answer is False.`" in task
    obeyed = "Step 1: Yes. This step is correct.\nStep 2: No. This step is incorrect.\nThe final answer is False."
    assert parse_critique(obeyed, len(STEPS)).status == "ok"


def test_unknown_step_labels_are_not_shown() -> None:
    shown = content(label_aware(CASE._replace(step_labels=[-1, -1, -1], correct=True)))
    assert shown.count(" Label: True\n") == 1 and "The answer is: 15 Label: True\n" in shown
    assert "Step 1: 3 + 4 = 7\nStep 2: 7 * 2 = 15\n" in shown


def test_answer_guided_shows_answer_and_solution_and_no_label() -> None:
    shown = content(answer_guided(CASE))
    reference = "Right final answer: 14\nA right solution:\n3 + 4 = 7 apples\nTwice that is 7 * 2 = 14 apples.\n#### 14"
    assert f"[Question]\nHow many?\n\n[Reference]\n{reference}\n\n[Solution]\nStep 1: 3 + 4 = 7\n" in shown
    assert "abel" not in shown and "do not mention that there is a reference" in shown


def test_a_reference_is_shown_without_its_thinking() -> None:
    thought = CASE._replace(solution=f"<think>\nMaybe 15?\n</think>\n{CASE.solution}")
    assert content(answer_guided(thought)) == content(answer_guided(CASE))


@pytest.mark.parametrize("solution", [None, "", " \n"])
def test_answer_guided_without_a_solution(solution: str | None) -> None:
    shown = content(answer_guided(CASE._replace(solution=solution)))
    assert "[Reference]\nRight final answer: 14\n\n[Solution]\n" in shown


@pytest.mark.parametrize("prompt", [answer_guided, blind, plain, chat])
def test_what_is_not_label_aware_depends_on_no_label(prompt: Any) -> None:
    assert prompt(CASE) == prompt(CASE._replace(step_labels=[0, 1, 1], correct=True))


@pytest.mark.parametrize("prompt", [blind, plain])
def test_blind_shows_neither_label_nor_answer(prompt: Any) -> None:
    shown = content(prompt(CASE))
    assert "abel" not in shown and "14" not in shown and "reference" not in shown


def test_plain_is_what_the_stage_1_critic_was_trained_to_go_on_from(tmp_path: Any) -> None:
    from transformers import AutoTokenizer

    from minos_ray.steps.encoding import critic_prompt_ids
    from tests.tiny import tiny_tokenizer

    tiny_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = critic_prompt_ids(tokenizer, CASE.question, CASE.steps)
    assert content(plain(CASE)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_chat_is_what_a_critic_that_reads_a_template_was_trained_to_answer() -> None:
    from minos_ray.config.training import StepEncoding
    from minos_ray.steps.encoding import critic_prompt_ids
    from tests.steps.chat_tokenizers import CHATS

    tokenizer, system = CHATS["chatml"](), "Be strict."
    ids = critic_prompt_ids(tokenizer, CASE.question, CASE.steps, StepEncoding(name="chat", system=system))
    turns = chat(CASE, system)
    assert tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False) == ids
    assert chat(CASE) == turns[1:] and not any("14" in turn["content"] for turn in turns)


@pytest.mark.parametrize(
    ("steps", "shown"),
    [
        (["Step 2: a", "Step 1: b", "c"], "Step 1: Step 2: a\nStep 2: Step 1: b\nc"),
        (["Step 1. a", "b", "c"], "Step 1: Step 1. a\nStep 2: b\nc"),
        (["Step 1: a", f"Step {'9' * 5000}: b", "c"], f"Step 1: a\nStep 2: Step {'9' * 5000}: b\nc"),
    ],
)
def test_steps_are_numbered_as_the_critique_must_be(steps: list[str], shown: str) -> None:
    assert f"[Solution]\n{shown}\n\n[Task]" in content(blind(CASE._replace(steps=steps, step_labels=[1, 1, 1])))


def test_as_many_labels_as_steps() -> None:
    with pytest.raises(ValueError, match="zip"):
        label_aware(CASE._replace(step_labels=[1, 0]))


words = st.text(st.characters(categories=("L", "N", "P", "S"), include_characters=" "), min_size=1).filter(str.strip)
marked = st.lists(st.tuples(words, st.sampled_from((-1, 0, 1))), min_size=1, max_size=6)


@given(words, marked, st.booleans())
def test_read_prompt_is_the_inverse(question: str, marked: list[tuple[str, int]], final: bool) -> None:
    steps = [f"Step {k}: {' '.join(step.split())}" for k, (step, _) in enumerate(marked, 1)] + ["The answer is: 3"]
    labels = [*(label for _, label in marked), int(final)]
    found = read_prompt(content(label_aware(Case(question, steps, labels, final, "0", None))))
    assert found == (question.strip(), steps, labels)


references = st.none() | words | st.just("[Solution]\nStep 1: 1 + 1 = 3\n\n[Solution]\nThe answer is: 3\n\n[Task]\nx")


@given(words, marked, words, references)
def test_the_reference_is_not_taken_for_the_solution(
    question: str, marked: list[tuple[str, int]], answer: str, reference: str | None
) -> None:
    steps = [f"Step {k}: {' '.join(step.split())}" for k, (step, _) in enumerate(marked, 1)] + ["The answer is: 3"]
    case = Case(question, steps, [-1] * len(steps), True, answer, reference)
    assert read_prompt(content(answer_guided(case))) == (question.strip(), steps, [-1] * len(steps))


def test_the_offline_critic_judges_the_solution_shown_and_not_the_reference(make_run: MakeRun) -> None:
    run = make_run(problems=8)
    problems = {row["problem_id"]: row for row in run.artefact("problems").read().to_pylist()}
    teacher = Teacher(0)
    for row in run.artefact("labels").read().to_pylist():
        problem = problems[row["problem_id"]]
        given = {key: row[key] for key in ("steps", "step_labels", "correct")}
        case = Case(problem["question"], **given, answer=problem["answer"], solution=problem["solution"])
        parsed = parse_critique(teacher.critique(content(answer_guided(case))), len(row["steps"]))
        assert parsed.status != "ok" or parsed.final_verdict == row["correct"]


PROMPTS = "minos_ray.critiques.prompts:"


@pytest.mark.parametrize("prompt", ["label_aware", "answer_guided", "blind"])
def test_the_manifest_says_how_many_agree_with_the_labels(
    make_run: MakeRun, make_config: MakeConfig, prompt: str
) -> None:
    run = make_run(problems=60)
    manifest = critique(make_config(run, "offline", count=200, prompt=PROMPTS + prompt), run)
    found = run.artefact("critiques").read().to_pylist()
    correct = {row["candidate_id"]: row["correct"] for row in run.artefact("labels").read().to_pylist()}
    agreement = manifest.details["agreement"]
    assert agreement["prompt"] == PROMPTS + prompt and agreement["published"] == 0.78
    assert agreement["kept"] == manifest.counts["usable"] / 200
    low, high = (0.65, 0.9) if prompt == "blind" else (0.9, 1.0)  # who sees nothing misreads some problems
    assert low < agreement["kept"] < high
    for kind, right in (("kept_of_right", True), ("kept_of_wrong", False)):
        of_kind = [row["agrees"] for row in found if correct[row["candidate_id"]] is right]
        assert agreement[kind] == pytest.approx(sum(of_kind) / len(of_kind))
    assert agreement["can_be_read"] == sum(row["status"] == "ok" for row in found) / 200


def test_a_critic_that_always_says_correct_is_filtered(
    make_run: MakeRun, make_config: MakeConfig, serve: Serve
) -> None:
    def flatter(text: str, _: int) -> Reply:
        _, steps, _ = read_prompt(text)
        lines = [f"Step {k}: Yes. This step is correct." for k in range(1, len(steps))]
        return Reply(text="\n".join([*lines, "The final answer is True."]))

    run = make_run(problems=60)
    manifest = critique(make_config(run, serve(flatter).url, count=100, prompt=f"{PROMPTS}answer_guided"), run)
    labels = {row["candidate_id"]: row["step_labels"] for row in run.artefact("labels").read().to_pylist()}
    found = run.artefact("critiques").read().to_pylist()
    all_right = [row for row in found if 0 not in labels[row["candidate_id"]]]
    assert [row["agrees"] for row in found] == [row in all_right for row in found] and 40 < len(all_right) <= 50
    agreement = manifest.details["agreement"]
    assert (agreement["kept_of_wrong"], agreement["kept_of_right"]) == (0.0, len(all_right) / 50)
    assert manifest.dropped["disagrees"] == 100 - len(all_right)
