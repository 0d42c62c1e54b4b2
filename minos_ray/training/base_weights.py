"""Whether the weights of a base model are whole: none missing, none of another shape, no scalar head of its own.

Names and shapes are compared by transformers' own loading, renamings and conversions included, so a check before the
work takes a model whose tensors have no memory, and says what the loader would say.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from minos_ray.config.training import Kind
from minos_ray.errors import UserError
from minos_ray.store.model_files import safetensors_files
from minos_ray.training.buffers import persistent
from minos_ray.training.heads import HEADS, auto_class, head_name, labels
from minos_ray.training.stored import Stored

# What scalar heads are called in published reward models.
REWARD_HEADS = {*HEADS, "classification_head", "v_head", "value_head", "reward_head", "rm_head"}
SHOWN = 3


def require_whole(model: Any, kind: Kind, info: Mapping[str, Any], path: str) -> None:
    """UserError that names what transformers' `output_loading_info` tells to be missing, wrong or another's."""
    head = "" if kind == "lm" else f"{head_name(model)}."
    own = {name for name in model.state_dict() if head and name.startswith(head)}
    theirs = own - set(info["missing_keys"])
    wrong = {name: shapes for name, *shapes in info["mismatched_keys"] if name not in theirs}
    theirs |= {name for name in info["unexpected_keys"] if name.partition(".")[0] in REWARD_HEADS}
    if missing := sorted(set(info["missing_keys"]) - own):
        raise UserError(f"base.model: {path} has no weights for {shown(missing)}; they would be random")
    if wrong:
        name, (stored, wanted) = sorted(wrong.items())[0]
        raise UserError(
            f"base.model: in {path} {shown(sorted(wrong))} are not those of its config.json: '{name}' is "
            f"{tuple(stored)}, wanted {tuple(wanted)}"
        )
    if theirs:
        raise UserError(
            f"base.model: {path} is a reward model or classifier, whose head ({shown(sorted(theirs))}) would be thrown "
            "away; give the language model that it was made from"
        )


def shown(names: Collection[str]) -> str:
    """The first names in quotes, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"'{name}'" for name in list(names)[:SHOWN]) + more


def tied(model: Any) -> dict[str, str]:
    """Names of weights that the config ties to another one: name -> the other's name."""
    return model.get_expanded_tied_weights_keys(all_submodels=True)


def require_tied(model: Any, path: str) -> None:
    """UserError when weights that the config ties were stored apart: transformers then leaves them apart."""
    for name, other in tied(model).items():
        if model.get_parameter(name) is not model.get_parameter(other):
            raise unequal(name, other, path)


def require_same(weights: Stored, names: Mapping[str, str], path: str) -> None:
    """The same from the files, a part of the tensors at a time."""
    for name, other in names.items():
        if name in weights and other in weights and not weights.same(name, other):
            raise unequal(name, other, path)


def unequal(name: str, other: str, path: str) -> UserError:
    """What is said of two weights that should be one."""
    return UserError(
        f"base.model: the config.json in {path} ties '{name}' to '{other}' (tie_word_embeddings), yet both are stored "
        "and differ; set it to false if both belong to the model, else take the first out of the weights"
    )


def check(path: str, kinds: Iterable[Kind], options: Mapping[str, Any], shares: bool, whole: bool) -> None:
    """UserError when the model at `path` lacks what training one of the kinds needs, by the headers of its files.

    `shares`: ZeRO 3 will load it, by the names that are stored. `whole`: its weights are there, not its config alone.
    """
    stored = shapes(path) if whole else {}
    for kind in kinds:
        model = empty(path, kind, options)
        if not stored:
            continue
        require_whole(model, kind, loading_info(model, stored, path), path)
        if bin_files(path):
            require_safetensors(path, shares)
            continue
        with Stored(path) as weights:
            require_same(weights, tied(model), path)
            if shares:
                require_names(model, kind, weights, path)


def empty(path: str, kind: Kind, options: Mapping[str, Any]) -> Any:
    """The model that a kind is trained as, without memory; UserError where transformers cannot make it."""
    with about(path):
        config = config_of(path, kind, options)
        with torch.device("meta"):
            model = auto_class(kind, config).from_config(config, **options)
        if kind != "lm":
            head_name(model)
    return model


def config_of(path: str, kind: Kind, options: Mapping[str, Any]) -> Any:
    """The config of a base for what is trained; UserError for quantised weights: their numbers alone, which ZeRO 3
    reads, are not the weights, and on GPUs they stay as they are, where nothing can be trained."""
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
def about(path: str) -> Iterator[None]:
    """What goes wrong with a base that is made by transformers, as one line that names it."""
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


def require_files(path: str) -> None:
    """UserError when a file of weights is missing, or none of safetensors."""
    if not bin_files(path):
        with Stored(path):
            pass


def bin_files(path: str) -> list[Path]:
    """The `pytorch_model*.bin` files of a model that has no safetensors files."""
    return [] if safetensors_files(path) else sorted(Path(path).glob("pytorch_model*.bin"))


def read_bin(file: Path) -> dict[str, torch.Tensor]:
    """Tensors without memory, by torch's restricted unpickler, as transformers reads them."""
    from pickle import UnpicklingError

    try:
        return torch.load(file, map_location="meta", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise UserError(f"base.model: {file} is no file of weights (a Git LFS pointer, or cut off?)") from error


def loading_info(model: Any, stored: Mapping[str, tuple[int, ...]], path: str) -> Mapping[str, Any]:
    """What transformers' own loading says of tensors of these names and shapes."""
    from transformers.utils import logging

    tensors = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    how = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        return type(model).from_pretrained(None, config=model.config, state_dict=tensors, **how)[1]
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
            f"base.model: {path} stores {shown(missing)} under other names, which resources.train.zero 3 does not "
            "know; set it below 3, or save the model anew with transformers"
        )


def require_safetensors(path: str, shares: bool) -> None:
    """UserError when ZeRO 3 is to load other files."""
    if shares:
        raise UserError(
            f"base.model: {path} has no safetensors files, which resources.train.zero 3 loads; set it below 3, or save "
            "the model anew with transformers"
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
