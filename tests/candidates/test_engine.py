"""The engine inside an actor, with a real vLLM: against transformers, and what it promises about texts and seeds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minos_ray.candidates.engine import Generator, Request, Text, arguments, cpu_dtype, stable_seed
from minos_ray.candidates.prompts import plain, sampling_of
from minos_ray.config.resources import Engine
from minos_ray.config.schema import Model, Sample
from minos_ray.graph.lengths import longest
from minos_ray.store.model_files import load_tokenizer
from tests.tiny import tiny_model

RESOURCES = Engine(kv_cache_gb=0.05, max_model_len=128, dtype="float32")
SAMPLED = {"temperature": 1.0, "max_tokens": 12}
GREEDY = {"temperature": 0.0, "max_tokens": 24}
QUESTIONS = ["Tom has 3 apples.", "How many apples does Tom have?", "Then 7 * 2 is what?"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny generator with a generation config of its own, which must change nothing."""
    path = tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    foreign = {"temperature": 0.01, "top_k": 1, "repetition_penalty": 5.0, "max_new_tokens": 2, "do_sample": True}
    (Path(path) / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **foreign}))
    return path


Event = tuple[str, tuple[int, ...]]


class Logged(Generator):
    """Tells in which order requests go in and come out."""

    def events(self, requests: list[Request], sampling: dict[str, Any], seed: str) -> tuple[list[Event], list[Any]]:
        """("in", places) and ("out", (place,)) in order, and the texts by place."""
        events: list[Event] = []
        made = {}

        def starting(places: list[int]) -> bool:
            events.append(("in", tuple(places)))
            return True

        for place, texts in self.stream(requests, sampling, seed, starting):
            events.append(("out", (place,)))
            made[place] = texts
        return events, [made[place] for place in range(len(requests))]


@pytest.fixture(scope="module")
def actor(path: str, end_of_ray: None) -> Iterator[Any]:
    """The generator in an actor of a real Ray."""
    import ray

    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=256 << 20)
    actor = ray.remote(Logged).options(num_cpus=1).remote(path, Model(model=path), RESOURCES)
    yield actor
    ray.kill(actor)


@pytest.fixture(scope="module")
def engine(actor: Any) -> Any:
    """`engine(requests, sampling, seed)` generates."""
    import ray

    return lambda *args: ray.get(actor.generate.remote(*args), timeout=300)


@pytest.fixture(scope="module")
def prompts(path: str) -> list[list[int]]:
    """Prompts of different lengths."""
    tokenizer = load_tokenizer(path)
    return [plain(question, tokenizer) for question in QUESTIONS]


def reference(
    path: str,
    prompts: list[list[int]],
    max_tokens: int,
    changed: Callable[[Any, list[int], list[int]], Any] = lambda logits, prompt, made: logits,
) -> list[str]:
    """Greedy texts by the plainest means: the best token of transformers' logits, again and again.

    `changed` penalises logits for the tokens of the prompt and of the text so far. vLLM keeps back the bytes of a
    character that is not complete at the end.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), load_tokenizer(path)
    texts = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + max_tokens and ids[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            ids.append(int(changed(logits, prompt, ids[len(prompt) :]).argmax()))
        texts.append(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).rstrip("\ufffd"))
    return texts


@pytest.mark.slow
def test_greedy_texts_are_those_of_transformers(engine: Any, path: str, prompts: list[list[int]]) -> None:
    made = engine([Request(prompt, 1) for prompt in prompts], GREEDY, "seed")
    texts = [texts[0].text for texts in made]
    assert texts == reference(path, prompts, 24)
    assert len(set(texts)) == 3


def repeated(logits: Any, prompt: list[int], made: list[int]) -> Any:
    """The penalty of CTRL (Keskar et al., 2019), over prompt and text: here 1.7."""
    for token in {*prompt, *made}:
        logits[token] = logits[token] / 1.7 if logits[token] > 0 else logits[token] * 1.7
    return logits


def present(logits: Any, prompt: list[int], made: list[int]) -> Any:
    """OpenAI's penalties, over the text alone: 1.5 for a token that is there, 0.8 for each time that it is."""
    for token in set(made):
        logits[token] -= 1.5 + 0.8 * made.count(token)
    return logits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "changed"),
    [
        ({"repetition_penalty": 1.7}, repeated),
        ({"presence_penalty": 1.5, "frequency_penalty": 0.8}, present),
        ({"temperature": 1.0, "min_p": 1.0}, lambda logits, prompt, made: logits),  # the best token alone is left
    ],
)
def test_keys_of_sampling_do_what_their_papers_say(
    engine: Any, path: str, prompts: list[list[int]], keys: dict[str, Any], changed: Any
) -> None:
    sampling = sampling_of(Sample(**{"temperature": 0.0, "max_tokens": 24, "stop": [], **keys}), load_tokenizer(path))
    made = [texts[0].text for texts in engine([Request(prompt, 1) for prompt in prompts], sampling, "seed")]
    assert made == reference(path, prompts, 24, changed)
    assert (made == reference(path, prompts, 24)) == ("min_p" in keys)


@pytest.mark.slow
def test_a_text_ends_before_a_stop_token(engine: Any, path: str, prompts: list[list[int]]) -> None:
    tokenizer = load_tokenizer(path)
    [plain] = reference(path, prompts[:1], 24)
    ids = tokenizer(plain, add_special_tokens=False)["input_ids"]
    token = next(token for place, token in enumerate(ids) if place > 3 and token not in ids[:place])
    sampling = sampling_of(Sample(temperature=0.0, max_tokens=24, stop=[], stop_token_ids=[token]), tokenizer)
    [[text]] = engine([Request(prompts[0], 1)], sampling, "seed")
    assert text.reason == "stop" and plain.startswith(text.text) and len(text.text) < len(plain)


@pytest.mark.slow
def test_greedy_is_made_once_and_repeated(engine: Any, prompts: list[list[int]]) -> None:
    (made,) = engine([Request(prompts[0], 5)], GREEDY, "seed")
    assert len(made) == 5
    assert len(set(made)) == 1


@pytest.mark.slow
def test_samples_depend_on_the_seed_and_only_on_it(engine: Any, prompts: list[list[int]]) -> None:
    requests = [Request(prompts[0], 16), Request(prompts[1], 3)]
    one, again, other = (engine(requests, SAMPLED, seed) for seed in ("a", "a", "b"))
    assert [len(made) for made in one] == [16, 3]
    assert one == again
    assert not {t.text for t in one[0]} & {t.text for t in other[0]}
    assert len({t.text for t in one[0]}) == 16
    assert max(t.tokens for t in one[0]) == 12


@pytest.mark.slow
def test_the_engine_is_kept_full_and_texts_come_out_when_they_are_finished(
    actor: Any, engine: Any, prompts: list[list[int]]
) -> None:
    import ray

    requests = [Request([5] * 200, 7), *[Request(prompts[i % 3], 100) for i in range(8)]]
    events, texts = ray.get(actor.events.remote(requests, SAMPLED, "a"), timeout=300)
    assert events[:2] == [("out", (0,)), ("in", (1, 2, 3))], "256 at once; what is refused is out at once"
    entered = [places for kind, places in events if kind == "in"]
    assert [place for places in entered for place in places] == list(range(1, 9))
    assert len(entered) >= 3
    last_in = max(at for at, (kind, _) in enumerate(events) if kind == "in")
    assert any(kind == "out" for kind, _ in events[1:last_in]), "some are finished before the last ones begin"
    assert [len(made) for made in texts] == [7] + [100] * 8
    assert texts == engine(requests, SAMPLED, "a")


@pytest.mark.slow
def test_a_prompt_without_room_is_refused_and_the_others_are_not(engine: Any, prompts: list[list[int]]) -> None:
    just_fits, too_long = [5] * (128 - 12), [5] * (128 - 11)
    made = engine([Request(too_long, 2), Request(just_fits, 2), Request(prompts[0], 1)], SAMPLED, "seed")
    assert [[t.reason == "prompt_too_long" for t in texts] for texts in made] == [[True] * 2, [False] * 2, [False]]
    assert made[0][0] == Text("", "prompt_too_long", 0)
    assert engine([Request(too_long, 2)], SAMPLED, "seed") == [made[0]]


@pytest.mark.slow
def test_a_text_ends_at_eos_or_before_a_stop_string(engine: Any, prompts: list[list[int]]) -> None:
    (made,) = engine([Request(prompts[0], 200)], {**SAMPLED, "temperature": 2.0, "max_tokens": 60}, "seed")
    stopped = [t for t in made if t.reason == "stop"]
    assert stopped
    assert all(t.tokens == 60 for t in made if t.reason == "length")
    assert not any("</s>" in t.text for t in made)
    (cut,) = engine([Request(prompts[0], 50)], {**SAMPLED, "max_tokens": 60, "stop": ["e", "a", " "]}, "seed")
    assert not any(letter in t.text for t in cut for letter in "ea ")


def test_arguments_for_gpus_and_cpus(path: str) -> None:
    model = Model(model=path)
    assert arguments(path, model, Engine(gpus=1))["distributed_executor_backend"] == "uni"
    eager = [arguments(path, model, Engine(gpus=n, eager=e))["enforce_eager"] for n in (0, 1) for e in (None, False)]
    assert eager == [True, False, False, False], "a graph pays on a GPU only"
    two = arguments(path, model, Engine(gpus=2, extra={"max_num_batched_tokens": 77}))
    assert (two["tensor_parallel_size"], two["distributed_executor_backend"]) == (2, "mp")
    assert two["dtype"] == "auto"
    assert two["max_num_batched_tokens"] == 77
    cpu = arguments(path, model, Engine(max_model_len=10_000, kv_cache_gb=0.5))
    assert cpu["max_model_len"] == longest(path) == 1024
    assert cpu["kv_cache_memory_bytes"] == 2**29
    assert cpu["dtype"] == cpu_dtype()
    assert cpu["trust_remote_code"] is False


def test_seeds_are_stable_and_different() -> None:
    assert stable_seed("0 p#0") == 960884916
    assert len({stable_seed(f"0 p#{i}") for i in range(1000)}) == 1000
