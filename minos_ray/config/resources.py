"""The sections `resources` and `observe`: with what the work is done and where it is watched, in no fingerprint.

And what may be set of an endpoint and added to each request, or to a tracker: secrets stay in the environment.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pydantic import Field, TypeAdapter, field_validator, model_validator

from minos_ray.config import Count, Section

# A project may be called sk-learn.
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
# A key may have a domain in front, as ray.io/availability-zone.
LABEL_KEY = re.compile(rf"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{{0,251}}[A-Za-z0-9])?/)?{LABEL}")
LABEL_CONDITION = re.compile(rf"!?{LABEL}|!?in\({LABEL}(?:, ?{LABEL})*\)")
# The base_url that starts the miniature's own critic.
OFFLINE = "offline"
SECRET = re.compile(r"auth|key|token|secret|pass|cookie|credential|signature", re.IGNORECASE)
SECRET_VARIABLE = re.compile(r"\$[A-Za-z_]\w*")
SECRET_VALUE = re.compile(r"(?:bearer|basic)\s|sk-", re.IGNORECASE)
SECRET_KEY = re.compile(
    r"api.?key|secret|password|authorization|credential|(?:access|auth|bearer).?token", re.IGNORECASE
)
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
OWN = {"model", "max_tokens", "temperature", "top_p", "reasoning_effort"}
FIXED = {"messages", "response_format", "max_completion_tokens", "stream", "n"}
LOOKS_LIKE_KEY = re.compile(r"bearer\s|basic\s+[a-z0-9+/]{8,}=*$|(?:sk-|hf_|wandb_)\S{16,}", re.IGNORECASE)


class Pool(Section):
    """Which nodes of the cluster a pool may use; all of them where both keys are empty."""

    accelerator_type: str | None = Field(None, min_length=1, description="Ray's name of a GPU, as A100, H100, L4")
    label_selector: dict[str, str] = Field(
        default_factory=dict, description="labels of nodes as {market: spot}, '!spot', 'in(a, b)' or '!in(a, b)'"
    )

    @field_validator("label_selector")
    @classmethod
    def conditions_are_rays(cls, selector: dict[str, str]) -> dict[str, str]:
        """Ray 2.60 matches what it cannot read as a plain value, with no node."""
        for key, condition in selector.items():
            if not LABEL_KEY.fullmatch(key):
                raise ValueError(f"'{key}' is no key of a label; write NAME or DOMAIN/NAME")
            if not LABEL_CONDITION.fullmatch(condition):
                raise ValueError(f"{key}: '{condition}' is no condition; write VALUE, !VALUE, in(A, B) or !in(A, B)")
        return selector


class Actors(Pool):
    """A pool of actors on the cluster; one actor never spans nodes."""

    actors: int = Field(1, ge=1)
    cpus: float = Field(1, ge=0)
    gpus: float = Field(0, ge=0, description="a number of GPUs, or a share of one below 1")

    @field_validator("gpus")
    @classmethod
    def gpus_are_whole_above_one(cls, gpus: float) -> float:
        """As Ray counts them; a whole number is an int."""
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("a share of a GPU is below 1, and more than one are whole GPUs")
        return int(gpus) if gpus == int(gpus) else gpus


class Engine(Actors):
    """vLLM actors. With GPUs, `gpus` is the tensor-parallel size; without, the CPU engine runs in the actor.

    An engine of several pipeline stages has `gpus` GPUs for each of them, and may span nodes.
    """

    pipeline_parallel_size: int = Field(1, ge=1, description="parts of the model's layers, each with `gpus` GPUs")
    max_model_len: int = Field(2048, ge=8, description="tokens of prompt and text; the model may allow fewer")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    kv_cache_gb: float = Field(1.0, gt=0, description="CPU engine only")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="of a GPU, or of the share of one")
    max_num_seqs: int = Field(256, ge=1)
    units_per_task: int = Field(8, ge=1, description="requests that belong together; a task is 16 times as long")
    eager: bool | None = Field(None, description="no compilation, no CUDA graphs; empty: so on CPUs, not so on GPUs")
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def pipelines_have_whole_gpus(self) -> "Engine":
        """vLLM's CPU engine has no pipeline over Ray, and each of its GPU workers takes a GPU."""
        if self.pipeline_parallel_size > 1 and self.gpus < 1:
            raise ValueError("pipeline_parallel_size above 1 needs gpus: 1 or more, for each part of the model")
        return self


class Scoring(Engine):
    """Actors that score, with transformers or with vLLM; transformers heeds `dtype` and the lengths only."""

    engine: Literal["transformers", "vllm"] = "transformers"
    max_model_len: int = Field(4096, ge=8, description="longer solutions are refused; the model may allow fewer")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: as the model is saved")
    units_per_task: int = Field(8, ge=1, description="problems that are scored together; a task is 16 times as long")

    @model_validator(mode="after")
    def transformers_use_one_gpu(self) -> "Scoring":
        """A model in several GPUs is vLLM's work."""
        if self.engine == "transformers" and self.gpus > 1:
            raise ValueError("gpus above 1 needs engine: vllm; transformers scores with one GPU an actor")
        if self.engine == "transformers" and self.pipeline_parallel_size > 1:
            raise ValueError("pipeline_parallel_size above 1 needs engine: vllm")
        return self


class Client(Section):
    """How hard the critic's endpoint is asked, by one process; the limits per minute are for all its requests."""

    concurrency: int = Field(64, ge=1, description="requests in flight, times `actors`")
    actors: int = Field(1, ge=1, description="multiplies `concurrency`; each was a process of its own once")
    cpus: float = Field(1, ge=0, description="no meaning any more: the driver itself asks")
    gpus: int = Field(0, ge=0, description="no meaning any more")
    timeout_s: float = Field(120, gt=0)
    max_retries: int = Field(8, ge=0)
    requests_per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0)
    batch_wait_s: float = Field(26 * 3600, gt=0, description="longest wait for a batch of mode 'batch'")


class Elastic(Section):
    """As many workers as the nodes of the cluster hold, from `min` to `max`."""

    min: Count
    max: Count

    def __str__(self) -> str:
        """`1 to 4`."""
        return f"{self.min} to {self.max}"

    @model_validator(mode="after")
    def most_is_not_below_least(self) -> "Elastic":
        """An empty range would never start."""
        if self.max < self.min:
            raise ValueError(f"max: {self.max} is below min: {self.min}")
        return self


class Workers(Pool):
    """Ray Train workers running DeepSpeed; `micro_tokens` bounds one forward pass of one worker."""

    workers: Count | Elastic = Field(1, description="a number, or {min: 1, max: 4}")
    cpus: float = Field(1, gt=0)
    gpu: bool = False
    zero: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "all"] = Field("none", description="to host memory; all: weights too, ZeRO 3")
    gpu_memory_gb: float | None = Field(None, gt=0, description="what a GPU has; nvidia-smi is asked when empty")
    packing: Literal["auto", "on", "off"] = Field("auto", description="rows without padding, where the model allows it")
    micro_tokens: int = Field(8192, ge=64)
    gradient_checkpointing: bool = False
    save_every: int = Field(200, ge=1, description="steps between checkpoints")
    keep: int = Field(1, ge=1, description="checkpoints kept while training, besides the best one")
    max_failures: int = Field(2, ge=0, description="lost workers and hangs; nodes that were drained do not count")
    collective_timeout_s: float = Field(1800, ge=1, description="longest wait of one worker for the others")

    @field_validator("workers", mode="wrap")
    @classmethod
    def count_or_range(cls, value: Any, _: object) -> int | Elastic:
        """As the union, of which pydantic would name the members in the key of an error."""
        elastic = isinstance(value, dict | Elastic)
        return Elastic.model_validate(value) if elastic else TypeAdapter(Count).validate_python(value)

    @property
    def least(self) -> int:
        """With fewer it does not train."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def most(self) -> int:
        """It never has more."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @model_validator(mode="after")
    def offload_needs_zero(self) -> "Workers":
        """What is not partitioned cannot be moved away."""
        if self.offload == "all" and self.zero != 3:
            raise ValueError("offload: all needs zero: 3")
        if self.offload == "optimizer" and self.zero == 0:
            raise ValueError("offload: optimizer needs zero: 1, 2 or 3")
        return self


class Resources(Section):
    """What the work may use; never part of a fingerprint."""

    address: str | None = Field(None, description="Ray address; empty joins RAY_ADDRESS or starts a local Ray")
    num_cpus: int | None = Field(None, ge=1, description="CPUs of a local Ray")
    wait_s: float = Field(600, gt=0, description="longest wait for resources")
    sample: Engine = Engine()
    client: Client = Client()
    train: Workers = Workers()
    score: Scoring = Scoring()
    judge: Engine = Engine()
    grade: Actors = Actors()
    search_pools: Literal[1, 2] = Field(1, description="2: a PRM in an actor of its own, of the size of `score`")
    wandb: bool = Field(False, description="the same as observe.tracker: minos_ray.observe.trackers:wandb")


def leaves(values: Any, prefix: str = "", into_lists: bool = False) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings; with `into_lists` also the items of a list, which have its key."""
    items: list[tuple[str, Any]] = []
    if isinstance(values, dict):
        items = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in values.items()]
    elif into_lists and isinstance(values, list):
        items = [(prefix, value) for value in values]
    for key, value in items:
        yield from leaves(value, key, into_lists)
    if not items:
        yield prefix, values


def holds_secret(url: str) -> bool:
    """Whether an address holds a name and a password, or a key in its query."""
    return "@" in urlsplit(url).netloc or any(map(SECRET.search, address(url)[1]))


def address(base_url: str) -> tuple[str, dict[str, str]]:
    """The address and the parameters that each request has besides, as Azure's `?api-version=...`."""
    parts = urlsplit(base_url)
    return urlunsplit(parts._replace(query="")), dict(parse_qsl(parts.query, keep_blank_values=True))


def check_headers(headers: Mapping[str, str]) -> None:
    """ValueError for a header that no request can have, or that holds a secret rather than the name of a variable."""
    for name, value in headers.items():
        if not HEADER.fullmatch(name) or not value.isascii() or not value.isprintable():
            raise ValueError(f"extra_headers.{name}: no request can have this header")
        says_so, names_variable = SECRET.search(name), SECRET_VARIABLE.fullmatch(value)
        secret = says_so and not SECRET.search(value) if names_variable else says_so or SECRET_VALUE.match(value)
        if secret:
            raise ValueError(
                f"extra_headers.{name} may hold a secret, which no config should: set a variable of the environment, "
                "with KEY or TOKEN in its name, and write $NAME"
            )


def check_body(extra: Mapping[str, Any]) -> None:
    """ValueError for what has a key of its own in the config, for what is no JSON, and for secrets."""
    for name in extra.keys() & (OWN | FIXED):
        remedy = f"; set critique.{name}" if name in OWN else ""
        raise ValueError(f"extra_body.{name} is set by each request itself{remedy}")
    for name in names(extra):
        if SECRET_KEY.search(name):
            raise ValueError(f"extra_body: {name} may hold a secret, which would stand in the files of the run")
    try:
        json.dumps(extra, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"extra_body is no JSON: {error}") from error


def names(value: Any) -> Iterator[str]:
    """The keys of all mappings in a JSON value."""
    for key, inner in (
        value.items() if isinstance(value, Mapping) else enumerate(value if isinstance(value, list) else ())
    ):
        yield str(key)
        yield from names(inner)


class Observe(Section):
    """A tracker that receives the numbers of trainings and evaluations; never part of a fingerprint."""

    tracker: str | None = Field(None, description="package.module:function, see docs/observability.md")
    options: dict[str, Any] = Field(default_factory=dict, description="its keyword arguments, as {project: NAME}")

    @model_validator(mode="after")
    def options_hold_no_secret(self) -> "Observe":
        """Trackers read their keys in the environment."""
        for name, value in leaves(self.options, into_lists=True):
            secret_name = SECRET_KEY.search(name) or name.lower().endswith("token")
            if secret_name or (isinstance(value, str) and (LOOKS_LIKE_KEY.match(value) or holds_secret(value))):
                raise ValueError(
                    f"options.{name} may hold a key, which would stand in files; set it in the environment"
                )
        return self
