"""Functions that a config names: each must be there, and take and give what its key is for."""

import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import MappingProxyType
from typing import Any, NamedTuple

from minos_ray.config.load import resolve
from minos_ray.errors import UserError


class NamedFunction(NamedTuple):
    """A function that a key names, what it is called with, and the form that it should have.

    With `is_right` it is harmless and called with `arguments`, and its value is tested; otherwise its parameters are
    looked at.
    """

    key: str
    name: str
    form: str
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = MappingProxyType({})
    is_right: Callable[[Any], bool] | None = None
    kind: type | None = None  # it is an instance of this class

    def check(self) -> None:
        """UserError when it is not there, or none of its kind."""
        try:
            function = resolve(self.name)
        except UserError as error:
            raise UserError(f"{self.key}: {error}") from error
        if why := self.mismatch(function):
            raise UserError(f"{self.key} = {self.name}: {why}; what is wanted is {self.form}")

    def mismatch(self, function: Any) -> str:
        """Why it is none of its kind; empty when it is, or when nothing shows that it is not."""
        if self.kind is not None:
            return "" if isinstance(function, self.kind) else f"that is no {self.kind.__name__.lower()}"
        if not callable(function):
            return "that is no function"
        try:
            inspect.signature(function).bind(*self.arguments, **self.options)
        except TypeError as error:
            return f"it cannot be called so ({error})"
        except ValueError:  # one written in C may not tell
            return ""
        if self.is_right is None:
            return ""
        try:
            # In a process of its own: a user's code may end the one that it runs in.
            with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
                value = pool.submit(function, *self.arguments, **self.options).result()
        except (TypeError, AttributeError) as error:
            return f"it fails on an example ({type(error).__name__}: {error})"
        except Exception:  # of what it does not like about the example: no sign of another kind
            return ""
        return "" if self.is_right(value) else f"on an example it gives {value!r:.60}"
