"""Functions that a config names: each must be there, and take and give what its key is for."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Set
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import MappingProxyType
from typing import Any, NamedTuple

from minos_ray.config.load import resolve
from minos_ray.config.schema import Config
from minos_ray.critiques.prompts import Case
from minos_ray.errors import UserError
from minos_ray.grading.graders import Grader

TEXT = "Step 1: 1 + 1 = 2\nThe answer is: 2"
CASE = Case("1 + 1?", TEXT.split("\n"), [1, 1], True, "2", None)


def texts(value: Any) -> bool:
    """Whether it is a list of texts."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def messages(value: Any) -> bool:
    """Whether it is a list of chat messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "content" in m for m in value)


class Named(NamedTuple):
    """A function that a key names, what it is called with, and the form that it should have.

    With `good` it is harmless and called with `arguments` to see what it gives; otherwise its parameters are looked at.
    """

    key: str
    name: str
    form: str
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = MappingProxyType({})
    good: Callable[[Any], bool] | None = None

    def check(self) -> None:
        """UserError when it is not there, or none of its kind."""
        try:
            function = resolve(self.name)
        except UserError as error:
            raise UserError(f"{self.key}: {error}") from error
        if why := self.wrong(function):
            raise UserError(f"{self.key} = {self.name}: {why}; what is wanted is {self.form}")

    def wrong(self, function: Any) -> str:
        """Why it is none of its kind; empty when it is, or when that cannot be told."""
        if self.key == "label.grader":
            return "" if isinstance(function, Grader) else "that is no grader"
        if not callable(function):
            return "that is no function"
        try:
            inspect.signature(function).bind(*self.arguments, **self.options)
        except TypeError as error:
            return f"it cannot be called so ({error})"
        except ValueError:  # one written in C may not tell
            return ""
        if self.good is None:
            return ""
        try:
            # In a process of its own: a user's code may end the one that it runs in.
            with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
                value = pool.submit(function, *self.arguments, **self.options).result()
        except (TypeError, AttributeError) as error:
            return f"it fails on an example ({type(error).__name__}: {error})"
        except Exception:  # of what it does not like about the example: no sign of another kind
            return ""
        return "" if self.good(value) else f"on an example it gives {value!r:.60}"


def critic_prompt(key: str, name: str) -> Named:
    """A prompt that asks a critic."""
    return Named(key, name, "(case) -> list of chat messages", (CASE,), {}, messages)


def named(config: Config, todo: Set[str]) -> Iterator[Named]:
    """The functions that the stages to be done will call."""
    if "problems" in todo and config.problems:
        for split in ("train", "test"):
            source = getattr(config.problems, split)
            options = {"path": source.path, "split": split, "limit": source.limit, "seed": 0, **source.options}
            yield Named(f"problems.{split}.loader", source.loader, "(path, split, limit, seed, ...)", (), options)
    if "sample" in todo or ("label" in todo and config.label.rollouts):
        yield Named("sample.prompt", config.sample.prompt, "(question, tokenizer) -> token ids", ("1 + 1?", None))
    if "label" in todo:
        yield Named("label.grader", config.label.grader, "a minos_ray.labels.answers.Grader")
        yield Named("label.splitter", config.label.splitter, "(text) -> list of steps", (TEXT,), {}, texts)
        if config.label.steps:
            form = "(question, solution, steps) -> labels and error types"
            yield Named("label.steps", config.label.steps, form, (CASE.question, CASE.solution, CASE.steps))
    if "critique" in todo:
        yield critic_prompt("critique.prompt", config.critique.prompt)
        yield critic_prompt("error_analysis.prompt", config.error_analysis.prompt)
    if "pretrain" in todo and config.pretrain:
        source = {"run": None} if config.pretrain.needs else {}
        options = {"seed": 0, **source, **config.pretrain.options}
        yield Named("pretrain.corpus", config.pretrain.corpus, "(seed, ...) -> documents", (), options)
        yield Named("pretrain.tokenizer", config.pretrain.tokenizer, "(texts, vocab_size)", ((), 300))
