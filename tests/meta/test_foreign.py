"""Published kinds of reward models against transformers, one solution at a time, and against vLLM."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from minos_ray.config.resources import Engine, Scoring
from minos_ray.config.schema import ForeignModel
from minos_ray.errors import UserError
from minos_ray.meta.foreign import ForeignScorer, ForeignScorers
from minos_ray.scoring.stage import UNITS
from tests.meta.foreign_models import changed, make
from tests.tiny import tiny_model

Solutions = list[tuple[str, list[str]]]
KINDS = {"sequence": "sequence", "chat": "sequence", "encoder": "sequence", "tokens": "tokens", "two-labels": "tokens"}
KINDS |= {"shepherd": "shepherd", "qwen": "qwen"}
Scorers = Callable[[str], ForeignScorer]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The path of a small model, made once."""
    folder, made = tmp_path_factory.mktemp("models"), dict[str, str]()

    def model(name: str) -> str:
        return made.setdefault(name, "") or made.update({name: make(name, folder / name)}) or made[name]

    return model


@pytest.fixture(scope="module")
def scorers(models: Callable[[str], str]) -> Scorers:
    """A loaded scorer of a small model."""

    def scorer(name: str, **changes: Any) -> ForeignScorer:
        path = models(name)
        return ForeignScorer(ForeignModel(model=path, kind=KINDS[name], **changes), path)

    return scorer


@pytest.fixture(scope="module")
def solutions() -> Solutions:
    """Of very different lengths."""
    rng = random.Random(0)
    return [
        (f"Tom has {n} apples. How many?", [f"Step {i}: {rng.randint(1, 99)} + {i} = 7" for i in range(1, n % 5 + 2)])
        for n in range(8)
    ]


def alone(name: str, path: str, solutions: Solutions) -> list[list[float]]:
    """Scores by the description of each kind: the text as a whole, marks found in it, transformers' own logits."""
    import torch

    with torch.inference_mode():
        return [one(name, *loaded(name, path), question, steps).tolist() for question, steps in solutions]


LOADED: dict[str, tuple[Any, Any]] = {}


def loaded(name: str, path: str) -> tuple[Any, Any]:
    """Model and tokenizer as transformers loads them."""
    import transformers as t

    classes = {"sequence": t.AutoModelForSequenceClassification, "tokens": t.AutoModelForTokenClassification}
    classes |= {"shepherd": t.AutoModelForCausalLM, "qwen": t.Qwen2Model}
    if path not in LOADED:
        LOADED[path] = (classes[KINDS[name]].from_pretrained(path).eval(), t.AutoTokenizer.from_pretrained(path))
    return LOADED[path]


def one(name: str, model: Any, tokenizer: Any, question: str, steps: list[str]) -> Any:
    """The scores of one solution."""
    import torch

    def logits(ids: list[int]) -> Any:
        return model(torch.tensor([ids])).logits[0]

    if name in ("sequence", "encoder"):
        return logits(tokenizer.encode("\n".join([question, *steps]))).sigmoid()
    if name == "chat":
        text = f"<s>[user] {question}\n[assistant] " + "\n".join(steps) + "\n"
        return logits(tokenizer.encode(text, add_special_tokens=False)).sigmoid()
    if KINDS[name] == "tokens":
        ids, ends = [tokenizer.bos_token_id, *tokenizer.encode(question, add_special_tokens=False)], []
        for step in steps:
            ids += [*tokenizer.encode(step, add_special_tokens=False), *tokenizer.encode("\n")]
            ends.append(len(ids) - 1)
        found = logits(ids)[ends]
        return found[:, 0].sigmoid() if name == "tokens" else found.softmax(-1)[:, 1]
    if name == "shepherd":
        text = question + " " + "\n".join(f"{step} ки" for step in steps)
        ids, tag = tokenizer.encode(text), tokenizer.encode(" ки", add_special_tokens=False)
        ends = [at + len(tag) - 1 for at in range(len(ids)) if ids[at : at + len(tag)] == tag]
        plus, minus = (tokenizer.encode(f" {sign}", add_special_tokens=False)[-1] for sign in "+-")
        return logits(ids)[ends][:, [plus, minus]].softmax(-1)[:, 0]
    return qwen_alone(model, tokenizer, question, steps)


def qwen_alone(model: Any, tokenizer: Any, question: str, steps: list[str]) -> Any:
    """The backbone by transformers, the head by hand."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(Path(model.config._name_or_path) / "model.safetensors")
    ids = torch.tensor([tokenizer.encode(qwen_text(question, steps))])
    read = model(ids).last_hidden_state[0][ids[0] == tokenizer.encode("<extra_0>")[0]]
    inner = torch.relu(read @ weights["score.0.weight"].T + weights["score.0.bias"])
    return (inner @ weights["score.2.weight"].T + weights["score.2.bias"]).softmax(-1)[:, 1]


def qwen_text(question: str, steps: list[str]) -> str:
    """A chat of three turns."""
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    turns = [("system", system), ("user", question), ("assistant", "<extra_0>".join([*steps, ""]))]
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("budget", [1, 250])
def test_scores_are_those_of_transformers(
    scorers: Scorers, models: Callable[[str], str], solutions: Solutions, name: str, budget: int
) -> None:
    scorer = scorers(name)
    scorer.budget = budget
    found, stats = scorer.score(solutions)
    expected = alone(name, models(name), solutions)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert [len(scores) for scores in found] == [len(steps) if scorer.every_step else 1 for _, steps in solutions]
    values = [score for scores in found for score in scores]
    assert max(values) - min(values) > 0.05
    assert stats["tokens"] == stats["tokens_of_solutions"] if budget == 1 else stats["tokens"] > 0


@pytest.mark.parametrize("pad", [None, 2])
def test_a_missing_pad_or_eos_as_pad_changes_nothing_for_transformers(
    solutions: Solutions, tmp_path: Path, pad: int | None
) -> None:
    path = changed(tiny_model(tmp_path, "orm"), pad_token_id=pad)
    ends = [(question, [*steps, "</s>"]) for question, steps in solutions]
    found, _ = ForeignScorer(ForeignModel(model=path, kind="sequence"), path).score(ends)
    for mine, theirs in zip(found, alone("sequence", path, ends), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_another_separator_is_another_reading(scorers: Scorers, solutions: Solutions) -> None:
    assert scorers("tokens").score(solutions) != scorers("tokens", separator="\n\n").score(solutions)


def test_what_cannot_be_read_is_refused_and_counted(scorers: Scorers) -> None:
    scorer = scorers("tokens")
    scorer.longest = 40
    found, stats = scorer.score([("How many?", ["It is 1."]), ("How many?", []), ("How many?", ["1 + 1 = 2"] * 40)])
    assert [len(scores) for scores in found] == [1, 0, 0]
    assert (stats["refused_no_steps"], stats["refused_over_max_length"]) == (1, 1)


def test_out_of_memory_halves_the_work(scorers: Scorers, solutions: Solutions) -> None:
    import torch

    scorer = scorers("qwen")
    expected, _ = scorer.score(solutions)
    sizes = []

    def small_memory(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        sizes.append(kwargs["input_ids"].shape[0])
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("no room for more than 3 rows")

    scorer.model.base_model.register_forward_pre_hook(small_memory, with_kwargs=True)
    scorer.budget = 5000
    found, _ = scorer.score(solutions)
    assert sizes[0] > 3 and sizes[-1] <= 3
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    scorer.budget = 5000
    scorer.score(solutions * 4)
    shortest = min(len(scorer.reading(*solution).ids) for solution in solutions)
    assert scorer.budget >= 2 * shortest, "halves without room are of one batch: the budget is what had room"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("tokens", "sequence", r"\['MistralForTokenClassification'\] .* kind 'sequence' is \*ForSequenceClassific"),
        ("two-labels", "qwen", "kind 'qwen' is"),
        ("encoder", "shepherd", "kind 'shepherd' is"),
    ],
)
def test_another_kind_is_a_user_error(models: Callable[[str], str], name: str, kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ForeignScorer(ForeignModel(model=models(name), kind=kind), models(name))


def test_missing_weights_are_a_user_error(tmp_path: Path) -> None:
    path = changed(tiny_model(tmp_path, "causal"), architectures=["MistralForTokenClassification"])
    changed(path, id2label={"0": "LABEL_0"})
    with pytest.raises(UserError, match="holds no weights score"):
        ForeignScorer(ForeignModel(model=path, kind="tokens"), path)


def test_a_verifier_of_ours_is_not_read_in_anothers_way(tmp_path: Path) -> None:
    path = changed(tiny_model(tmp_path, "prm"), step_encoding={"name": "question-answer-lines", "version": 2})
    with pytest.raises(UserError, match="its kind is 'minos'"):
        ForeignScorer(ForeignModel(model=path, kind="tokens"), path)


def test_a_tokenizer_without_the_separator_is_a_user_error(models: Callable[[str], str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = make("qwen", tmp_path / "qwen")
    AutoTokenizer.from_pretrained(models("shepherd")).save_pretrained(path)
    with pytest.raises(UserError, match="no chat template or no token <extra_0>"):
        ForeignScorer(ForeignModel(model=path, kind="qwen"), path)


def test_the_worker_scores_units_of_several_models(models: Callable[[str], str], scorers: Scorers) -> None:
    steps = [["It is 1.", "So 1."], []]
    unit = {"unit_id": "u", "problem_id": "p", "question": "How many?", "candidate_ids": ["p/0", "p/1"], "steps": steps}
    sections = {name: ForeignModel(model=models(name), kind=KINDS[name]) for name in ("sequence", "qwen")}
    worker = ForeignScorers(".", sections, "product", Scoring())
    for name, scorer in ((name, scorers(name)) for name in sections):
        rows, stats = worker(pa.Table.from_pylist([{**unit, "artefact": name}], schema=UNITS))
        first, second = rows.to_pylist()
        (found, _), _ = scorer.score([("How many?", each) for each in steps])
        assert first["score"] == pytest.approx(found[0] * found[1] if scorer.every_step else found[0])
        assert first["step_scores"] == pytest.approx(found if scorer.every_step else [])
        assert (second["score"], second["step_scores"], stats["refused_no_steps"]) == (0.0, [], 1)


def test_scores_that_are_no_numbers_are_refused_and_counted(models: Callable[[str], str]) -> None:
    import torch

    worker = ForeignScorers(
        ".", {"a": ForeignModel(model=models("tokens"), kind="tokens")}, "min", Scoring(max_model_len=99)
    )
    scorer = worker.scorer_of("a")
    assert scorer.longest == 99
    mark = scorer.tokenizer.encode("~", add_special_tokens=False)[0]
    scorer.model.get_input_embeddings().weight.data[mark] = torch.nan
    steps = [["It is 1.", "So ~1."], ["It is 1."]]
    unit = {"unit_id": "u", "problem_id": "p", "question": "How many?", "candidate_ids": ["p/0", "p/1"], "steps": steps}
    rows, stats = worker(pa.Table.from_pylist([{**unit, "artefact": "a"}], schema=UNITS))
    broken, fine = rows.to_pylist()
    assert (broken["score"], broken["step_scores"], stats["refused_not_finite"]) == (0.0, [], 1)
    assert 0 < fine["score"] < 1


def test_positions_that_begin_behind_a_padding_index_are_fewer(tmp_path: Path) -> None:
    """RoBERTa's table of positions begins with padding_idx + 1 that no token takes."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    path = tiny_model(tmp_path, "orm")
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    made = RobertaConfig(vocab_size=400, max_position_embeddings=43, pad_token_id=2, num_labels=1, **size)
    RobertaForSequenceClassification(made).save_pretrained(path)
    scorer = ForeignScorer(ForeignModel(model=path, kind="sequence"), path)
    assert scorer.longest == 40
    sized = {len(scorer.reading("?", ["+" * signs]).ids): ["+" * signs] for signs in range(30, 45)}
    found, stats = scorer.score([("?", sized[40]), ("?", sized[41]), ("?", sized[35])])
    assert [len(scores) for scores in found] == [1, 0, 1] and stats["refused_over_max_length"] == 1


def test_a_pad_below_zero_is_none(solutions: Solutions, scorers: Scorers, tmp_path: Path) -> None:
    path = changed(make("tokens", tmp_path / "tokens"), pad_token_id=-1)
    found, _ = ForeignScorer(ForeignModel(model=path, kind="tokens"), path).score(solutions)
    assert np.concatenate(found) == pytest.approx(np.concatenate(scorers("tokens").score(solutions)[0]), abs=1e-5)


def vllm_scores(path: str, solutions: Solutions) -> list[list[float]]:
    """By vLLM's own Qwen2ForProcessRewardModel, in a process of its own."""
    from minos_ray.candidates.engine import set_environment

    set_environment(Engine())
    from vllm import LLM, PoolingParams

    options = {"distributed_executor_backend": "uni", "block_size": 32, "kv_cache_memory_bytes": 1 << 26}
    llm = LLM(path, dtype="float32", max_model_len=512, enforce_eager=True, **options)
    mark = llm.get_tokenizer().encode("<extra_0>")[0]
    prompts = [{"prompt_token_ids": llm.get_tokenizer().encode(qwen_text(*solution))} for solution in solutions]
    marked = PoolingParams(step_tag_id=mark)
    outputs = llm.encode(prompts, pooling_task="token_classify", pooling_params=marked, use_tqdm=False)
    return [output.outputs.data[:, 1].tolist() for output in outputs]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_qwen_scores_are_those_of_vllm(scorers: Scorers, models: Callable[[str], str], solutions: Solutions) -> None:
    import ray

    path = changed(models("qwen"), auto_map={})
    theirs = ray.get(ray.remote(vllm_scores).options(num_cpus=1).remote(path, solutions[:6]))
    mine, _ = scorers("qwen").score(solutions[:6])
    for found, expected in zip(mine, theirs, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
