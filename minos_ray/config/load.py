"""Reading the configuration: YAML files, shipped configs, overrides `key=value`, former names, errors in one line;
and the functions that a config or a format names: each must be there, and take and give what it is for.
"""

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_type_hints

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from minos_ray.config.resources import leaves
from minos_ray.config.schema import Config
from minos_ray.errors import UserError

__all__ = ["Config", "leaves", "load_config", "resolve"]

# Names that configs and manifests of earlier versions use for what has another place now: modules whose functions a
# config may name, and the model that is shipped.
MOVED = {
    "minos_ray.labels.answers:": "minos_ray.grading.graders:",
    "minos_ray.labels.miniature:": "minos_ray.miniature.step_labels:",
    "minos_ray.labels.same:": "minos_ray.grading.same:",
    "minos_ray.labels.steps:": "minos_ray.steps.split:",
    "minos_ray.labels.values:": "minos_ray.grading.values:",
    "minos_ray.miniature.problems:": "minos_ray.miniature:",
    "minos_ray.problems.gsm8k:load": "minos_ray.problems.loaders:gsm8k",
    "minos_ray.problems.math:load": "minos_ray.problems.loaders:math",
    "minos_ray.problems.miniature:": "minos_ray.miniature:",
    "minos_ray.problems.miniature.tokenizer:": "minos_ray.miniature.tokenizer:",
    "minos_ray.problems.table:load": "minos_ray.problems.loaders:table",
    "minos_ray.training.corpora:": "minos_ray.training.pretrain:",
    "minos_ray.training.tokenizer:": "minos_ray.training.pretrain:",
    "package:problems/miniature/model": "package:miniature/model",
}


def resolve(name: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; UserError when there is none, or its module fails."""
    module, _, attribute = with_names_of_today(name).partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"'{name}' does not name a function (package.module:function): {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"'{name}': importing {module} ends in {type(error).__name__}: {error}") from error


def find_own_modules(config: str | None) -> None:
    """Lets configs name functions in the working directory, as `python -m` does, and beside the config.

    They come last, so that no file there takes the place of a package. Ray gives its workers the working directory;
    those of this machine, and the processes that compare answers, get the other folder with their environment.
    """
    try:
        working_directory = os.getcwd()
    except FileNotFoundError:  # removed meanwhile: there are no modules in it
        return
    beside = os.path.dirname(os.path.abspath(config)) if config and os.path.isfile(config) else working_directory
    for folder in dict.fromkeys((working_directory, beside)):
        if folder not in sys.path:
            sys.path.append(folder)
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if beside != working_directory and beside not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, inherited), beside])


def shipped() -> list[str]:
    """Names of the configs inside the package, usable instead of a path."""
    return sorted(f.name.removesuffix(".yaml") for f in files("minos_ray.config").iterdir() if f.name.endswith(".yaml"))


def with_names_of_today(value: Any) -> Any:
    """A value of a config, or all values in it, with each moved name replaced."""
    if isinstance(value, dict):
        return {key: with_names_of_today(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_names_of_today(item) for item in value]
    if isinstance(value, str):
        for former, today in MOVED.items():
            if value.startswith(former):
                return today + value.removeprefix(former)
    return value


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a YAML file, or of a shipped name such as `miniature`, with overrides `section.key=value`."""
    values = read_yaml(source)
    for override in overrides:
        key, value = parse_override(override)
        assign(values, key.split("."), value)
    return build(values)


def read_yaml(source: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file or shipped config."""
    path = Path(source)
    if not path.is_file() and str(source) in shipped():
        path = Path(str(files("minos_ray.config").joinpath(f"{source}.yaml")))
    if not path.is_file():
        raise UserError(f"config '{source}' is neither a file nor a shipped config ({', '.join(shipped())})")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config '{source}' is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"config '{source}' holds no mapping of sections")
    return values


def parse_override(override: str) -> tuple[str, Any]:
    """Key and YAML value of `key=value`."""
    key, sign, text = override.partition("=")
    if not sign:
        raise UserError(f"override '{override}' is not of the form key=value")
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override '{override}': the value is not YAML") from error


def assign(values: dict[str, Any], keys: list[str], value: Any) -> None:
    """Sets a nested key, making sections on the way."""
    for depth, key in enumerate(keys[:-1]):
        if values.get(key) is None:  # an optional section that is not there
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise UserError(f"override '{'.'.join(keys)}': '{'.'.join(keys[: depth + 1])}' is a value, not a section")
    values[keys[-1]] = value


def build(values: dict[str, Any]) -> Config:
    """Validated config; UserError with one line for the first thing wrong, and the nearest name for an unknown key."""
    try:
        return Config(**with_names_of_today(values))
    except TypeError as error:
        raise UserError(f"config: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"unknown config key '{key}'{suggestion(first['loc'])}") from error
        if first["type"] == "missing":
            raise UserError(f"config key '{key}' is missing") from error
        # A whole section may hold what no log should, and says little.
        value = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
        raise UserError((f"config key '{key}'{value}: " if key else "config: ") + first["msg"]) from error


def suggestion(loc: tuple[int | str, ...]) -> str:
    """`; did you mean ...?` with the nearest key of the section, or the list of its keys."""
    model: Any = Config
    for part in loc[:-1]:
        field = model.model_fields.get(str(part))
        # A section's class may stand behind `| None`.
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if model is None:
            return ""
    names = list(model.model_fields)
    return nearest(str(loc[-1]), names) or f"; valid keys: {', '.join(names)}"


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the nearest of the names, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def function_of(command: str, formats: Mapping[str, str], name: str) -> Callable[..., Any]:
    """The function of an import or export format; UserError with the nearest name for an unknown one."""
    if name not in formats:
        names = ", ".join(formats)
        raise UserError(f"{command}: format '{name}' is not known; there are {names}{nearest(name, formats)}")
    return resolve(formats[name])


def checked_options(where: str, function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options `key=value` of a format as the types of its function's keyword-only parameters.

    UserError for the first unknown name or wrong value.
    """
    parameters = inspect.signature(function).parameters.values()
    accepted = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for name in options:
        if name not in accepted:
            names = ", ".join(accepted) or "none"
            raise UserError(f"{where}: unknown option '{name}'; accepted: {names}{nearest(name, accepted)}")
    hints, values = get_type_hints(function, include_extras=True), {}
    for name, value in options.items():
        try:
            values[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise UserError(f"{where}: {name} = {value!r}: {error.errors()[0]['msg']}") from error
    return values


def secret(name: str, key: str = "critique.api_key_env") -> str:
    """The value of an environment variable that holds a key; UserError (without the value) when it is not set, or when
    no header can hold it: the HTTP library would name it in its error."""
    value = os.environ.get(name, "").strip()
    if not value:
        raise UserError(f"{key}: the environment variable {name} is not set")
    if not value.isascii() or not value.isprintable():
        raise UserError(f"{key}: the key in ${name} holds characters that no key has")
    return value


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
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        try:
            # In a process of its own: a user's code may end the one that it runs in.
            with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
                value = pool.submit(function, *self.arguments, **self.options).result()
        except (TypeError, AttributeError) as error:
            return f"it fails on an example ({type(error).__name__}: {error})"
        except Exception:  # of what it does not like about the example: no sign of another kind
            return ""
        return "" if self.is_right(value) else f"on an example it gives {value!r:.60}"
