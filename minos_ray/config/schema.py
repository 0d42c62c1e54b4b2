"""The sections of the configuration, as pydantic models.

Sections say what is made and go into fingerprints; `resources` says with what, and does not.
"""

from collections.abc import Set
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StringConstraints, model_validator

from minos_ray.config import Section, Seed
from minos_ray.config.resources import Observe, Resources, check_body, check_headers, holds_secret
from minos_ray.config.training import (
    VERIFIERS,
    Dpo,
    Pretrain,
    Refine,
    Reward,
    Sft,
    StepEncoding,
    Study,
    Sweep,
    Teach,
    Train,
)

ErrorType = Literal["unrelated", "accumulation", "calculation", "logical", "other"]
InsertedType = Literal["calculation", "logical", "unrelated", "accumulation"]
Aggregation = Literal["min", "product", "last", "mean"]  # of a PRM's step scores into one score
ERROR_TYPES: tuple[ErrorType, ...] = get_args(ErrorType)
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)


class Source(Section):
    """Where problems come from: `loader` is called with path, split, limit, seed and `options`."""

    loader: str = "minos_ray.problems.loaders:gsm8k"
    path: str | None = None
    limit: int | None = Field(None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)


class Problems(Section):
    """The two splits; a training question that is a test question too is taken out of the training ones, counted."""

    train: Source
    test: Source


class Model(Section):
    """A model: a directory, a hub id, `package:FOLDER` (shipped with minos_ray) or `run:models/NAME`."""

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    adapter: str | None = Field(
        None, exclude_if=lambda adapter: adapter is None, description="LoRA of peft, for generator and completer"
    )

    def without_adapter(self, key: str) -> None:
        """ValueError where nothing would add the adapter to the weights."""
        if self.adapter is not None:
            raise ValueError(f"{key}.adapter: merge it into the model with peft (merge_and_unload), and name that")


class Base(Model):
    """The model that critic and verifiers start from."""

    encoding: StepEncoding = StepEncoding()

    @model_validator(mode="before")
    @classmethod
    def of_any_model(cls, values: Any) -> Any:
        """A plain `Model` is read as text."""
        return values.model_dump() if type(values) is Model else values

    @model_validator(mode="after")
    def starts_from_weights(self) -> "Base":
        """Training adds no adapter of others."""
        self.without_adapter("base")
        return self


# What a base model that does not end its text goes on with, behind each shipped prompt; a chat template has an end.
PLAIN = "minos_ray.candidates.prompts:plain"
NEXT_QUESTION = {
    PLAIN: ("\nQuestion:",),
    "minos_ray.candidates.prompts:alpaca": ("\n### Instruction:", "\nBelow is an instruction that"),
}


class Sample(Section):
    """Sampling of candidates; temperature 0 is greedy. Paper: n = 256, T = 0.7, 256 new tokens."""

    n_train: int = Field(15, ge=0)
    n_test: int = Field(256, ge=1)
    unit: int = Field(64, ge=1, description="candidates of one request: the unit of work, storage and loss")
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, description="0 or -1: all tokens")
    min_p: float = Field(0.0, ge=0, le=1, description="tokens less likely than this times the best one are left out")
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0)
    max_tokens: int = Field(256, ge=1)
    stop_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = Field((), description="end a text, beside EOS")
    system: str | None = Field(None, description="the system turn of prompts:chat")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="as {enable_thinking: false}; same")
    stop: tuple[str, ...] = Field((), description="unset or null: where a shipped prompt's next question would begin")
    prompt: str = PLAIN

    @model_validator(mode="before")
    @classmethod
    def stops_of_the_prompt(cls, values: Any) -> Any:
        """Stated here, so that the resolved config and the fingerprint of the candidates name them."""
        if isinstance(values, dict) and values.get("stop") is None:
            prompt = values.get("prompt", PLAIN)
            return {**values, "stop": NEXT_QUESTION.get(prompt, ()) if isinstance(prompt, str) else ()}
        return values


class Search(Section):
    """`minos search`: candidates of the test problems by a PRM-guided search over steps, sampled as `sample` says.

    Of the `n` beams of a problem the best `1/width` are kept after each step, and continued by `width` steps each.
    """

    method: Literal["beam", "dvts", "lookahead", "particles"] = "beam"
    n: int = Field(16, ge=1, le=4096, description="candidates of a problem")
    width: int = Field(4, ge=1, description="continuations of a kept beam; 1 keeps all, without a verifier")
    lookahead: int = Field(1, ge=1, description="method lookahead: greedy steps before a step is scored")
    verifier: Model | None = Field(None, description="a PRM; empty: the run's own, prm-minos before prm-base")
    aggregation: Aggregation | None = Field(None, description="of step scores; empty: score.aggregation")
    temperature: float | None = Field(None, ge=0, description="empty: sample.temperature")
    step_end: str = Field("\n", min_length=1, description="where the generator's steps end")
    max_steps: int = Field(32, ge=1, description="a solution with more of them is cut off")
    seed: Seed = 0

    @model_validator(mode="after")
    def verifier_has_no_adapter(self) -> "Search":
        """Only vLLM's generators add adapters."""
        if self.verifier:
            self.verifier.without_adapter("verifier")
        return self


class Rollouts(Section):
    """Step labels by completions from each step's prefix (Math-Shepherd, section 3: N = 8).

    A step is right (hard label) when any completion reaches the gold answer; one of a longer prefix counts, and so does
    the rest of a right candidate. With `soft` all completions are made and `step_scores` is the share of the prefix's
    own that reach it; without, a prefix is left as soon as its label is decided. Sampled as `sample` says.
    """

    completer: Model | None = Field(None, description="the generator when empty")
    completions: int = Field(8, ge=1)
    soft: bool = False
    candidates: int | None = Field(None, ge=1, description="train candidates labelled, by turns of problems; or all")


class Label(Section):
    """Outcome and step labels.

    `steps` is a function that labels the steps of a candidate. With `rollouts` they come from completions instead, and
    a function in `steps` becomes the second opinion: rows on whose first error both disagree lose their step labels.
    """

    grader: str = "minos_ray.grading.graders:gsm8k"
    splitter: str = "minos_ray.steps.split:paragraphs_or_lines"
    steps: str | None = None
    rollouts: Rollouts | None = None
    after_first_error: Literal["keep", "mask", "inherited"] = Field("keep", description="paper: keep")
    timeout_s: float = Field(5.0, gt=0)


class Inserted(Section):
    """Errors put into right solutions on purpose, with exact labels and a note (CriticGPT's idea); 0 makes none."""

    count: int = Field(0, ge=0)
    wrong_share: float = Field(0.5, gt=0, le=1, description="the rest are right solutions, with a note that says so")
    types: tuple[InsertedType, ...] = Field(get_args(InsertedType), min_length=1)
    source: Literal["solutions", "candidates"] = Field("solutions", description="which right solutions are taken")


class Critique(Section):
    """Critiques bought from an OpenAI-compatible endpoint; the key comes from the environment only."""

    count: int = Field(30_000, ge=0)
    wrong_share: float = Field(0.5, ge=0, le=1, description="share of wrong candidates among those critiqued")
    base_url: str = Field("https://api.openai.com/v1", description="'offline' starts the miniature's own server")
    model: str = "gpt-4"
    # Variables with such names are left out of logs.
    api_key_env: str = Field("OPENAI_API_KEY", pattern="(?i)KEY|TOKEN|SECRET|PASS|CREDENTIAL")
    mode: Literal["online", "batch"] = Field("online", description="batch: OpenAI's Batch API, at half the price")
    prompt: str = "minos_ray.critiques.prompts:label_aware"
    structured: bool = Field(False, description="ask for JSON of a given schema, where the endpoint can do that")
    temperature: float | None = Field(0.0, ge=0, description="empty for models that take none")
    max_tokens: int = Field(1024, ge=1)
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    top_p: float | None = Field(None, gt=0, le=1, description="sent where it is set")
    reasoning_effort: str | None = Field(None, min_length=1, description="sent where it is set: low, medium, high, ...")
    extra_body: dict[str, Any] = Field({}, description="further parameters of each request, as the endpoint knows them")
    extra_headers: dict[str, str] = Field({}, description="of each request; $NAME is a variable of the environment")
    usd_per_million_input: float | None = Field(None, ge=0, description="empty: from the price table, else 0")
    usd_per_million_output: float | None = Field(None, ge=0, description="empty: from the price table, else 0")
    max_usd: float | None = Field(None, gt=0, description="stop cleanly before this is spent")

    @model_validator(mode="after")
    def requests_hold_no_secret(self) -> "Critique":
        """What is added to a request is fit to be sent, and to stand in the files of the run."""
        if holds_secret(self.base_url):
            raise ValueError("base_url with a password or key would stand in logs; set the key in the environment")
        check_headers(self.extra_headers)
        check_body(self.extra_body)
        return self


class ErrorAnalysis(Section):
    """The critic sorts wrong steps into the paper's five types; asked as `critique` says."""

    count: int = Field(0, ge=0, description="wrong candidates sorted, and as many inserted errors, to check the critic")
    prompt: str = "minos_ray.critiques.error_types:classify"


class Judge(Section):
    """The critic as generative verifier: `samples` critiques a candidate (temperature 0 is greedy)."""

    samples: int = Field(1, ge=1)
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    soft: bool = Field(False, description="also scores/critic-soft: P(True) and P(correct) of the verdicts' tokens")


class Score(Section):
    """Scoring of test candidates; `judge` is empty when the critic shall not judge."""

    aggregation: Aggregation = "min"
    judge: Judge | None = Judge()


class Evaluate(Section):
    """Selection for every n in `ns` (powers of two up to n_test when empty) and its intervals."""

    ns: tuple[Annotated[int, Field(ge=1)], ...] = ()
    groups: int = Field(1, ge=1, description="candidates are dealt into so many groups; results are their mean")
    trials: int = Field(50, ge=2, description="random n-subsets for votes")
    bootstrap: int = Field(2000, ge=100)
    seed: Seed = 0


class ForeignModel(Model):
    """A reward model by its kind; docs/meta.md says what each kind reads.

    `minos` is a verifier that minos_ray saved; `critic` a critic that it trained, which judges as `score.judge` says.
    """

    kind: Literal["minos", "critic", "sequence", "tokens", "shepherd", "qwen"]
    separator: str = Field("\n", min_length=1, description="kind tokens: what its training put behind each step")

    @model_validator(mode="after")
    def has_no_adapter(self) -> "ForeignModel":
        """Only vLLM's generators add adapters."""
        self.without_adapter("models")
        return self


class MetaCritic(Critique):
    """A critic that is judged, asked as section `critique` says, about every solution and never with its labels."""

    prompt: str = "minos_ray.critiques.prompts:blind"
    samples: int = Field(1, ge=1, description="critiques of each solution; its score is the share that accept it")

    @model_validator(mode="after")
    def every_solution_is_asked_about(self) -> "MetaCritic":
        """Keys that choose candidates mean nothing here, and several critiques must be able to differ."""
        for name in ("count", "wrong_share"):
            if getattr(self, name) != Critique.model_fields[name].default:
                raise ValueError(f"'{name}' is for section critique; here every solution is asked about")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples > 1 needs a temperature above 0")
        return self


VerifierName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class Meta(Section):
    """`minos meta`: verifiers, published reward models and critics judged on labelled sets.

    Sets are run directories (see `minos import`); the run's own test split when empty. A threshold is given, or chosen
    for each verifier on the set of another run directory.
    """

    sets: tuple[str, ...] = ()
    models: dict[VerifierName, ForeignModel] = Field(default_factory=dict)
    critics: dict[VerifierName, MetaCritic] = Field(default_factory=dict)
    threshold: float = Field(0.5, ge=0, le=1)
    threshold_from: str | None = Field(None, description="a run directory none of whose problems is in the sets")

    @model_validator(mode="after")
    def no_name_twice_and_one_threshold(self) -> "Meta":
        """Scores are stored by name, and the threshold is given or chosen."""
        soft = [f"{name}-soft" for name, model in self.models.items() if model.kind == "critic"]
        names = [*VERIFIERS, *self.models, *soft, *self.critics]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the name '{repeated[0]}' is taken twice")
        if self.threshold_from is not None and self.threshold != 0.5:
            raise ValueError("set threshold or threshold_from, not both")
        return self


class Report(Section):
    """What the report shows beside the figures."""

    title: str = "Math-Minos"
    paper: Literal["gsm8k", "math"] = "gsm8k"
    candidates: int = Field(40, ge=0)
    problems: int = Field(100, ge=0, description="test problems in the candidate browser, drawn at random; 0: none")


class Config(Section):
    """Everything about one run."""

    run: str
    seed: Seed = 0
    problems: Problems | None = None
    generator: Model | None = None
    base: Base
    pretrain: Pretrain | None = None
    sample: Sample = Sample()
    search: Search = Search()
    label: Label = Label()
    inserted: Inserted = Inserted()
    critique: Critique = Critique()
    error_analysis: ErrorAnalysis = ErrorAnalysis()
    sft: Sft = Sft()
    dpo: Dpo = Dpo()
    refine: Refine = Refine()
    reward: Reward = Reward()
    score: Score = Score()
    evaluate: Evaluate = Evaluate()
    teach: Teach = Teach()
    meta: Meta = Meta()
    sweep: Sweep = Sweep()
    study: Study = Study()
    report: Report = Report()
    resources: Resources = Resources()
    observe: Observe = Observe()

    @property
    def tracking(self) -> Observe:
        """`observe`, for which the older key `resources.wandb` may stand."""
        if self.observe.tracker is None and self.resources.wandb:
            return self.observe.model_copy(update={"tracker": "minos_ray.observe.trackers:wandb"})
        return self.observe

    def trainings(self, stages: Set[str]) -> list[tuple[str, Train]]:
        """Trainings of these stages from the base model or the critic, each with its section's name.

        Rounds of the critic (`refine`) are trained as `sft` or `dpo` says.
        """
        dpo = self.refine.method == "dpo"
        planned = {
            "sft": "sft" in stages or ("refine" in stages and not dpo),
            "dpo": "refine" in stages and dpo,
            "reward": "reward" in stages,
        }
        return [(name, getattr(self, name)) for name in planned if planned[name]]

    @model_validator(mode="after")
    def sections_agree(self) -> "Config":
        """What one section names, another one makes: the base, who judges a policy that is taught, inserted errors."""
        if self.base.model.startswith("run:") and self.pretrain is None:
            raise ValueError("base.model names a model of this run, but there is no section 'pretrain'")
        judge = self.teach.judge
        if self.teach.rounds and judge != "gold" and judge not in self.reward.verifiers:
            raise ValueError(f"teach.judge '{judge}' is not among reward.verifiers; name one of them, or gold")
        if self.sft.source == "inserted" and not self.inserted.count:
            raise ValueError("sft.source is 'inserted', but inserted.count is 0")
        return self
