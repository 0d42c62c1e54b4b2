"""Options `key=value` of an import or export format: its function's keyword-only parameters, checked by their types."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from minos_ray.errors import UserError


def chosen(where: str, formats: Mapping[str, str], form: str) -> str:
    """The function of a format; UserError with the nearest name for an unknown one."""
    if form not in formats:
        names = ", ".join(formats)
        raise UserError(f"{where}: format '{form}' is not known; there are {names}{nearest(form, formats)}")
    return formats[form]


def checked(where: str, function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the function's types; UserError for the first unknown name or wrong value."""
    parameters = inspect.signature(function).parameters.values()
    accepted = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for name in options:
        if name not in accepted:
            names = ", ".join(accepted) or "none"
            raise UserError(f"{where}: unknown option '{name}'; accepted: {names}{nearest(name, accepted)}")
    hints = get_type_hints(function, include_extras=True)
    return {name: typed(f"{where}: {name}", hints[name], value) for name, value in options.items()}


def typed(where: str, kind: Any, value: Any) -> Any:
    """The value as that type; UserError says what would be accepted."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{where} = {value!r}: {error.errors()[0]['msg']}") from error


def nearest(name: str, names: Any) -> str:
    """`; did you mean 'x'?` with the nearest of the names, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
