"""The base model on disk: its tensors, and whether they are complete: none missing, none of another shape.

Names and shapes are compared by transformers' own loading, renamings and conversions included, so a check before the
work takes a model whose tensors have no memory, and says what the loader would say.
"""

from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from minos_ray.config.training import Kind
from minos_ray.errors import UserError
from minos_ray.store.model_files import LOADING, SINGLE, safetensors_files
from minos_ray.training.heads import HEADS, auto_class, head_name, labels, scalar_head


class Stored:
    """Tensors by name, read from one or several safetensors files when they are asked for.

    As in transformers the files say what they hold; an index says only which files there are.
    """

    def __init__(self, path: str) -> None:
        self.folder = Path(path)

    def __enter__(self) -> "Stored":
        files = safetensors_files(str(self.folder)) or [self.folder / SINGLE]
        for file in files:
            if not file.is_file():
                raise UserError(
                    f"base.model: {self.folder} has no {file.name}; its weights must be whole and in safetensors files"
                )
        self.stack = ExitStack()
        self.opened = {file.name: self.open(file) for file in files}
        self.files = {tensor: name for name, file in self.opened.items() for tensor in file.keys()}  # noqa: SIM118
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stack.close()

    def open(self, file: Path) -> Any:
        """One file; UserError when it is none of safetensors."""
        try:
            return self.stack.enter_context(safe_open(file, "pt"))
        except SafetensorError as error:
            hint = "a Git LFS pointer, or cut off while it was copied?"
            raise UserError(f"base.model: {file} is no file of safetensors ({hint}): {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.opened[self.files[name]].get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, without reading it."""
        return tuple(self.opened[self.files[name]].get_slice(name).get_shape())

    def same(self, name: str, other: str, rows: int = 4096) -> bool:
        """Whether two tensors are equal, so many rows of them read at a time."""
        if self.shape(name) != self.shape(other):
            return False
        first, second = (self.opened[self.files[tensor]].get_slice(tensor) for tensor in (name, other))
        starts = range(0, self.shape(name)[0], rows)
        return all(torch.equal(first[start : start + rows], second[start : start + rows]) for start in starts)


# What scalar heads are called in published reward models.
REWARD_HEADS = {*HEADS, "classification_head", "v_head", "value_head", "reward_head", "rm_head"}
QUOTED = 3


def require_complete(model: Any, kind: Kind, info: Mapping[str, Any], path: str) -> None:
    """UserError that names weights which are missing, of another shape, or of a head that would be thrown away.

    `info` is transformers' `output_loading_info`.
    """
    head = "" if kind == "lm" else f"{head_name(model)}."
    new_head = {name for name in model.state_dict() if head and name.startswith(head)}
    stored_head = new_head - set(info["missing_keys"])
    mismatched = {name: shapes for name, *shapes in info["mismatched_keys"] if name not in stored_head}
    stored_head |= {name for name in info["unexpected_keys"] if name.partition(".")[0] in REWARD_HEADS}
    if missing := sorted(set(info["missing_keys"]) - new_head):
        raise UserError(f"base.model: {path} has no weights for {quoted(missing)}; they would be random")
    if mismatched:
        name, (stored, expected) = sorted(mismatched.items())[0]
        raise UserError(
            f"base.model: in {path} {quoted(sorted(mismatched))} are not those of its config.json: '{name}' is "
            f"{tuple(stored)}, wanted {tuple(expected)}"
        )
    if stored_head:
        raise UserError(
            f"base.model: {path} is a reward model or classifier, whose head ({quoted(sorted(stored_head))}) would be "
            "thrown away; give the language model that it was made from"
        )


def quoted(names: Collection[str]) -> str:
    """The first names in quotes, and how many more there are."""
    others = f" and {len(names) - QUOTED} more" if len(names) > QUOTED else ""
    return ", ".join(f"'{name}'" for name in list(names)[:QUOTED]) + others


def tied_weights(model: Any) -> dict[str, str]:
    """Names of weights that the config ties to another one: name -> the other's name."""
    return model.get_expanded_tied_weights_keys(all_submodels=True)


def require_equal(weights: Stored, names: Mapping[str, str], path: str) -> None:
    """The same from the files, a part of the tensors at a time."""
    for name, other in names.items():
        if name in weights and other in weights and not weights.same(name, other):
            raise not_equal(name, other, path)


def not_equal(name: str, other: str, path: str) -> UserError:
    """For two tied weights that are stored with different values."""
    return UserError(
        f"base.model: the config.json in {path} ties '{name}' to '{other}' (tie_word_embeddings), yet both are stored "
        "and differ; set it to false if both belong to the model, else take the first out of the weights"
    )


def check(
    path: str,
    kinds: Iterable[Kind],
    options: Mapping[str, Any],
    zero3: bool,
    with_weights: bool,
    calibrated: bool = False,
) -> None:
    """UserError when the model at `path` lacks what training one of the kinds needs, by the headers of its files.

    `zero3`: it will be loaded by the names that are stored. `with_weights`: more than its config lies there.
    """
    stored = shapes(path) if with_weights else {}
    for kind in kinds:
        model = meta_model(path, kind, options, calibrated)
        if not stored:
            continue
        require_complete(model, kind, loading_info(model, stored, path), path)
        if bin_files(path):
            if zero3:
                raise UserError(
                    f"base.model: {path} has no safetensors files, which resources.train.zero 3 loads; set it below 3, "
                    "or save the model anew with transformers"
                )
            continue
        with Stored(path) as weights:
            require_equal(weights, tied_weights(model), path)
            if zero3:
                require_names(model, kind, weights, path)


def meta_model(path: str, kind: Kind, options: Mapping[str, Any], calibrated: bool = False) -> Any:
    """The model that a kind is trained as, on torch's meta device; UserError where transformers cannot make it."""
    with naming_errors(path):
        config = config_of(path, kind, options)
        with LOADING, torch.device("meta"):
            model = auto_class(kind, config, calibrated).from_config(config, **options)
        if kind != "lm":
            scalar_head(model, calibrated)
    return model


def config_of(path: str, kind: Kind, options: Mapping[str, Any]) -> Any:
    """The config of a base for what is trained; UserError for quantised weights, which cannot be trained.

    ZeRO 3 would read their numbers as weights, and on GPUs they stay quantised.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, **labels(kind), **options)
    for part in (config, config.get_text_config()):
        if settings := getattr(part, "quantization_config", None):
            method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
            raise UserError(
                f"its weights are quantised ({method}), and only others can be trained; give the model that they were "
                "made from, or save it anew with transformers, dequantised"
            )
    return config


@contextmanager
def naming_errors(path: str) -> Generator[None]:
    """Turns whatever transformers raises while it makes a model into a UserError of one line that names `path`."""
    from transformers import __version__

    try:
        yield
    except UserError as error:
        raise UserError(f"base.model: {path}: {error}") from error
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        trust = "; base.trust_remote_code: true runs it" if "trust_remote_code" in str(error) else ""
        raise UserError(
            f"base.model: {path}: transformers {__version__} makes no model of its config.json: {line}{trust}"
        ) from error


def shapes(path: str) -> dict[str, tuple[int, ...]]:
    """The stored tensors by name; of `pytorch_model.bin` files the tensors' places are read, not the tensors."""
    if files := bin_files(path):
        return {name: tuple(tensor.shape) for file in files for name, tensor in read_bin(file).items()}
    with Stored(path) as weights:
        return {name: weights.shape(name) for name in weights.files}


def bin_files(path: str) -> list[Path]:
    """The `pytorch_model*.bin` files of a model that has no safetensors files."""
    return [] if safetensors_files(path) else sorted(Path(path).glob("pytorch_model*.bin"))


def read_bin(file: Path) -> dict[str, torch.Tensor]:
    """Tensors on torch's meta device, by its restricted unpickler, as transformers reads them."""
    from pickle import UnpicklingError

    try:
        return torch.load(file, map_location="meta", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise UserError(f"base.model: {file} is no file of weights (a Git LFS pointer, or cut off?)") from error


def loading_info(model: Any, stored: Mapping[str, tuple[int, ...]], path: str) -> Mapping[str, Any]:
    """transformers' `output_loading_info` for tensors of these names and shapes."""
    from transformers.utils import logging

    tensors = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with LOADING:
            return type(model).from_pretrained(None, config=model.config, state_dict=tensors, **options)[1]
    except (RuntimeError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"base.model: the weights in {path} do not load: {line}") from error
    finally:
        logging.set_verbosity(level)


def require_names(model: Any, kind: Kind, weights: Stored, path: str) -> None:
    """UserError when a weight is stored under another name: ZeRO 3 loads by name, without transformers' renamings."""
    head = () if kind == "lm" else tuple(f"{name}." for name in HEADS)
    names = [name for name, _ in model.named_parameters() if not name.startswith(head)]
    if missing := [name for name in [*names, *persistent(model)] if name not in weights]:
        raise UserError(
            f"base.model: {path} stores {quoted(missing)} under other names, which resources.train.zero 3 does not "
            "know; set it below 3, or save the model anew with transformers"
        )


def require_vocabulary_head(path: str, options: Mapping[str, Any]) -> None:
    """UserError when a verifier's language loss has no vocabulary head to train along: it is read by its name."""
    from transformers import AutoConfig

    if AutoConfig.from_pretrained(path, **options).get_text_config().tie_word_embeddings:
        return
    if bin_files(path) or "lm_head.weight" not in shapes(path):
        raise UserError(
            f"reward.lm_weight: {path} has no 'lm_head.weight' in safetensors files, which would be trained along; "
            "save the model anew with transformers, or set it to 0"
        )


def persistent(model: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that are saved with the weights, by name."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}
