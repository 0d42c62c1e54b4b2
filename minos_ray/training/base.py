"""The base model: the classes and the head that transformers has for it, its tokenizer, and whether its tensors on disk
are complete: none missing, none of another shape.

An ORM is a `*ForSequenceClassification`, a PRM a `*ForTokenClassification`. Where transformers has only one of the two
for a family both kinds are saved as that one, and the config says which kind it is (`verifier_kind`): their forward
passes are the same, a linear layer on hidden states, read at the last token or at each.

Names and shapes are compared by transformers' own loading, renamings and conversions included, so a check before the
work takes a model whose tensors have no memory, and says what the loader would say.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from minos_ray.config.schema import Config
from minos_ray.config.training import Kind, StepEncoding
from minos_ray.errors import UserError
from minos_ray.steps import encoding
from minos_ray.store.model_files import LOADING, SINGLE, load_tokenizer, locate, safetensors_files
from minos_ray.store.run import Run

SEQUENCE, TOKEN, CAUSAL = "ForSequenceClassification", "ForTokenClassification", "ForCausalLM"
# In order of preference; an architecture that ends so is loaded by transformers' `AutoModel` + that ending.
ENDINGS: dict[Kind, tuple[str, ...]] = {"lm": (CAUSAL,), "orm": (SEQUENCE, TOKEN), "prm": (TOKEN, SEQUENCE)}
MAPPINGS = {
    SEQUENCE: "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    TOKEN: "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    CAUSAL: "MODEL_FOR_CAUSAL_LM_MAPPING",
}
# What transformers calls the layer from a decoder's hidden states to scores.
HEADS = ("score", "classifier")
LABEL = "correct"
# What scalar heads are called in published reward models.
REWARD_HEADS = {*HEADS, "classification_head", "v_head", "value_head", "reward_head", "rm_head"}
QUOTED = 3


def labels(kind: Kind) -> dict[str, Any]:
    """What a verifier's config says about its one label."""
    return {} if kind == "lm" else {"num_labels": 1, "id2label": {0: LABEL}, "label2id": {LABEL: 0}}


def auto_class(kind: Kind, config: Any, calibrated: bool = False) -> Any:
    """The class of transformers that a kind is trained and saved as; UserError when the family has none.

    A `calibrated` verifier needs a head with a bias, which a `*ForTokenClassification` has alone.
    """
    import transformers

    endings = ENDINGS[kind] if kind == "lm" or not calibrated else (TOKEN,)
    for ending in endings:
        auto = getattr(transformers, f"AutoModel{ending}")
        in_library = type(config) in getattr(transformers, MAPPINGS[ending])
        if in_library or auto.__name__ in (getattr(config, "auto_map", None) or {}):
            return auto
    classes = " and no ".join(f"*{ending}" for ending in endings)
    model = {"lm": "a language model", "orm": "an ORM", "prm": "a PRM"}[kind]
    raise UserError(
        f"transformers {transformers.__version__} has no {classes} for model type '{config.model_type}', so {model} of "
        "it could not be loaded by others; take a base of another family (docs/training.md names them)"
    )


def by_token(config: Any) -> bool:
    """Whether a saved verifier gives a logit at every token, by the architecture that its config names."""
    return any(name.endswith(TOKEN) for name in config.architectures or [])


def saved_class(config: Any) -> Any:
    """The class of transformers that loads a saved verifier."""
    import transformers

    return getattr(transformers, f"AutoModel{TOKEN if by_token(config) else SEQUENCE}")


def reads_last(model: Any) -> bool:
    """Whether the class of a verifier gives the logit of the last token alone."""
    return type(model).__name__.endswith(SEQUENCE)


def own_class(model: Any, kind: Kind) -> bool:
    """Whether the class of a verifier says by its name which kind it is."""
    return type(model).__name__.endswith(ENDINGS[kind][0])


def head_name(model: Any) -> str:
    """The name of a verifier's scalar head; UserError unless one linear layer is all that stands behind the decoder.

    Dropout in front of it aside: training has its own, and scoring none.
    """

    behind = {
        name: module
        for name, module in model.named_children()
        if name != model.base_model_prefix and not isinstance(module, nn.Dropout)
    }
    name, head = next(iter(behind.items()), ("", None))
    scalar = name in HEADS and isinstance(head, nn.Linear) and head.out_features == 1
    pooled = reads_last(model) and getattr(model.base_model, "pooler", None) is not None
    if len(behind) != 1 or not scalar or pooled:
        parts = ", ".join([*(["pooler"] if pooled else []), *behind]) or "nothing"
        raise UserError(
            f"{type(model).__name__} has {parts} behind its decoder, where one linear layer to one score is needed "
            f"({' or '.join(HEADS)}); take a base of another family (docs/training.md names them)"
        )
    return name


def scalar_head(model: Any, calibrated: bool = False) -> nn.Linear:
    """The linear layer from hidden state to logit; UserError where a calibrated verifier's has no bias."""
    head = getattr(model, head_name(model))
    if calibrated and head.bias is None:
        raise UserError(f"reward.calibration: the head of {type(model).__name__} has no bias to shift; set it to none")
    return head


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
        self.stack, self.opened = ExitStack(), {}
        for file in files:
            try:
                self.opened[file.name] = self.stack.enter_context(safe_open(file, "pt"))
            except SafetensorError as error:
                hint = "a Git LFS pointer, or cut off while it was copied?"
                raise UserError(f"base.model: {file} is no file of safetensors ({hint}): {error}") from error
        self.files = {tensor: name for name, file in self.opened.items() for tensor in file.keys()}  # noqa: SIM118
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.opened[self.files[name]].get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, without reading it."""
        return tuple(self.opened[self.files[name]].get_slice(name).get_shape())

    def differ(self, name: str, other: str, rows: int = 4096) -> bool:
        """Whether two tensors are both stored and not equal, so many rows of them read at a time."""
        if name not in self or other not in self or self.shape(name) != self.shape(other):
            return name in self and other in self
        first, second = (self.opened[self.files[tensor]].get_slice(tensor) for tensor in (name, other))
        starts = range(0, self.shape(name)[0], rows)
        return not all(torch.equal(first[start : start + rows], second[start : start + rows]) for start in starts)


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


def require_equal(model: Any, path: str, differ: Callable[[str, str], bool]) -> None:
    """UserError when weights that the config ties to one another are stored with different values."""
    for name, other in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if differ(name, other):
            raise UserError(
                f"base.model: the config.json in {path} ties '{name}' to '{other}' (tie_word_embeddings), yet both are "
                "stored and differ; set it to false if both belong to the model, else take the first out of the weights"
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
            require_equal(model, path, weights.differ)
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
    from pickle import UnpicklingError

    stored: dict[str, tuple[int, ...]] = {}
    for file in bin_files(path):
        try:  # on the device `meta`, by torch's restricted unpickler, as transformers reads them
            tensors = torch.load(file, map_location="meta", weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise UserError(f"base.model: {file} is no file of weights (a Git LFS pointer, or cut off?)") from error
        stored |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if bin_files(path):
        return stored
    with Stored(path) as weights:
        return {name: weights.shape(name) for name in weights.files}


def bin_files(path: str) -> list[Path]:
    """The `pytorch_model*.bin` files of a model that has no safetensors files."""
    return [] if safetensors_files(path) else sorted(Path(path).glob("pytorch_model*.bin"))


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


def base_tokenizer(config: Config, run: Run, critic: bool = False) -> Any:
    """The tokenizer of the base model, which every model of a run shares; UserError when it does not fit the model."""
    base = config.base
    return tokenizer_of(locate(base, run), base.trust_remote_code, critic, base.encoding)


def tokenizer_of(path: str, trust_remote_code: bool, critic: bool, layout: StepEncoding = encoding.LINES) -> Any:
    """The tokenizer at `path`.

    UserError when the model beside it has no embedding for some of its tokens, when a `critic` is to be trained and
    no token ends a critique, or when the step encoding `layout` cannot be used with it.
    """
    from transformers import AutoConfig

    tokenizer = load_tokenizer(path, trust_remote_code)
    if critic and tokenizer.eos_token_id is None:
        raise UserError(f"base.model: the tokenizer in {path} has no EOS token, which would end a critique; name one")
    if layout.name == "chat":
        encoding.require_template(tokenizer, layout.system, layout.chat_template_kwargs, "base.encoding", critic)
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    encoding.require_same(getattr(config, "step_encoding", None), tokenizer, layout, f"base.model: {path}")
    embeddings = config.get_text_config().vocab_size
    # Rows have tokens of text, BOS and, of a critic, EOS; other special tokens (padding, images) are in no row.
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= embeddings}
    special = {number for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    unused = special - {tokenizer.bos_token_id, tokenizer.eos_token_id if critic else None}
    if tokens := [beyond[number] for number in sorted(beyond) if number not in unused]:
        raise UserError(
            f"base.model: the tokenizer in {path} has {len(tokens)} tokens (the first is '{tokens[0]}') without one of "
            f"the model's {embeddings} embeddings: another model's, or some were added without resizing the model"
        )
    return tokenizer
