"""The sections of the configuration that say how models are trained, and what is compared over several trainings; see
`schema`.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from minos_ray.config import Section, Seed
from minos_ray.config.resources import leaves

# `candidates` (those that have a critique) and `solutions` (the problems' own) are controls: text without a critique.
Source = Literal["critiques", "inserted", "both", "candidates", "solutions"]
Verifier = Literal["orm-base", "orm-minos", "prm-base", "prm-minos"]
# What a training makes: a language model, or an outcome or process reward model.
Kind = Literal["lm", "orm", "prm"]
BINARY = "minos_ray.training.verifier_losses:binary"
VERIFIERS: tuple[Verifier, ...] = ("orm-base", "orm-minos", "prm-base", "prm-minos")
VerifierKind = Literal["orm", "prm"]
Measure = Literal["accuracy", "f1", "auc", "step_f1", "best_of_n", "weighted_vote"]
ArmName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]
LABEL_ARM = re.compile(r"labels-(\d+)-(base|minos)")
TAKEN = re.compile(rf"base|minos|critiques-.*|{LABEL_ARM.pattern}")  # the other arms
# What a study sets itself, and what all of its arms must share to be compared.
OWN = {
    "run", "seed", "study", "resources", "problems", "score", "evaluate", "error_analysis", "critique.count",
    "sft.seed", "sft.rows", "reward.seed", "reward.verifiers",
}  # fmt: skip
STAGE_1 = ("sft", "critique", "inserted", "refine", "dpo")


class StepEncoding(Section):
    """How question and steps become what models read; every model of a run has the same, and scores with it."""

    name: Literal["lines", "chat"] = Field(
        "lines", description="chat: the base's own chat template, for instruct models"
    )
    system: str | None = Field(None, min_length=1, description="the system turn of chat")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="what the template reads, as {enable_thinking: false}"
    )

    @model_validator(mode="after")
    def lines_have_no_turns(self) -> "StepEncoding":
        """Plain text has no system turn."""
        if self.name == "lines" and (self.system or self.chat_template_kwargs):
            raise ValueError("system and chat_template_kwargs are for name: chat")
        return self


class Lora(Section):
    """Low-rank adapters are trained instead of all weights, with a verifier's scalar head; needs peft."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1, description="the adapter is added times alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="linear layers of the backbone: attention and MLP as Llama, Mistral and Qwen name them",
    )


class Train(Section):
    """Optimisation of one training run; a step is `batch_rows` rows over all workers."""

    epochs: float = Field(1, gt=0)
    lr: float = Field(1e-5, gt=0)
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    batch_rows: int = Field(256, ge=1)
    max_length: int = Field(1024, ge=8)
    precision: Literal["fp32", "bf16"] = "bf16"
    eval_every: int = Field(60, ge=1, description="steps between evaluations (the convergence curve)")
    pick: Literal["last", "best"] = Field("last", description="best: the weights with the lowest loss on held-out rows")
    seed: Seed = 0
    lora: Lora | None = Field(None, description="empty: all weights are trained")


class Pretrain(Train):
    """A small base model from nothing: own tokenizer, Mistral architecture.

    `corpus` is called with seed and `options`, and with run when it `needs` artefacts; it yields (question, solution).
    """

    corpus: str
    needs: tuple[str, ...] = ()
    tokenizer: str = "minos_ray.training.pretrain:byte_level_bpe"
    options: dict[str, Any] = Field(default_factory=dict)
    vocab_size: int = Field(2048, ge=300)
    layers: int = Field(4, ge=1)
    hidden: int = Field(256, ge=1)
    intermediate: int = Field(688, ge=1)
    heads: int = Field(8, ge=1)
    kv_heads: int = Field(4, ge=1)
    max_positions: int = Field(1024, ge=8)

    @field_validator("lora")
    @classmethod
    def all_weights_are_new(cls, lora: Lora | None) -> Lora | None:
        """An adapter needs weights worth keeping."""
        if lora is not None:
            raise ValueError("a model from nothing has no weights to freeze; lora is for sft and reward")
        return lora


class Sft(Train):
    """Stage 1. Paper: lr 5e-6, cosine, warm-up 0.03, 3 epochs, batch 256, length 1024."""

    epochs: float = Field(3, gt=0)
    lr: float = Field(5e-6, gt=0)
    rows: int | None = Field(
        None, ge=1, description="critiques used, a fiftieth of them held out; all usable ones when empty"
    )
    source: Source = Field(
        "both", description="bought ones, inserted errors, or both; as controls plain text of as many tokens"
    )
    agreeing: bool = Field(True, description="bought critiques that contradict the labels are left out")


class Dpo(Train):
    """Preferences instead of imitation (Rafailov et al. 2023, appendix B: beta 0.1, 64 pairs a step, lr 1e-6)."""

    beta: float = Field(0.1, gt=0, description="how dear it is to leave the start model; smaller: further away")
    lr: float = Field(1e-6, gt=0)
    batch_rows: int = Field(128, ge=2, description="two rows a pair")


class Refine(Section):
    """Rounds in which the critic learns from its own critiques: those that agree with the labels (STaR, ReST-EM)."""

    method: Literal["rejection", "dpo"] = Field(
        "rejection", description="dpo: an agreeing and a disagreeing critique of a candidate as a pair, by section dpo"
    )
    rounds: int = Field(0, ge=0, description="at most so many, and none after the first that does not help; 0: off")
    candidates: int = Field(
        2000, ge=2, description="labelled train candidates criticised in a round, half of them wrong"
    )
    samples: int = Field(8, ge=1, description="critiques of each of them")
    temperature: float = Field(1.0, gt=0)
    max_tokens: int = Field(512, ge=1)
    keep: int = Field(
        2, ge=1, description="agreeing critiques (dpo: pairs) of a candidate that are trained on, at most"
    )
    start: Literal["base", "critic"] = Field(
        "base", description="what a round trains: the base anew, or the last critic (dpo: always that)"
    )
    epochs: float | None = Field(None, gt=0, description="of a round's training; empty: as sft, or dpo, says")
    held_out: int = Field(400, ge=2, description="candidates that measure each critic; of problems held out by stage 2")
    start_round: int | None = Field(
        None, ge=0, description="the critic that stage 2 and the judge take, 0 the bought one; empty: the best"
    )

    @model_validator(mode="after")
    def start_round_is_made(self) -> "Refine":
        """A round that is not asked for cannot be started from."""
        if self.start_round is not None and self.start_round > self.rounds:
            raise ValueError(f"start_round is {self.start_round}, but rounds is {self.rounds}")
        return self


class Teach(Train):
    """`minos teach`: the generator learns its own best solutions (RAFT, Dong et al. 2023: from the current policy)."""

    rounds: int = Field(0, ge=0, description="0: none")
    judge: Verifier | Literal["gold"] = Field("orm-minos", description="whose scores decide; gold: labels, the ceiling")
    problems: int | None = Field(None, ge=1, description="train problems of a round, drawn at random; all when empty")
    samples: int = Field(8, ge=1, description="solutions of each train problem")
    most: int = Field(1, ge=1, description="solutions kept of each problem, those with the highest scores")
    threshold: float = Field(0.0, ge=0, le=1, description="a solution with a lower score is not kept")
    test_samples: int = Field(8, ge=1, description="solutions of each test problem, on which a policy is measured")
    lr: float = Field(5e-6, gt=0)
    batch_rows: int = Field(64, ge=1)


class Reward(Train):
    """Stage 2, the same for base and Minos. Paper: 440k rows, batch 512, 1 epoch, length 512; lr not given."""

    verifiers: tuple[Verifier, ...] = VERIFIERS
    rows: int | None = Field(None, ge=1, description="labelled candidates used; all when empty")
    wrong_share: float | None = Field(None, gt=0, lt=1, description="balance to this share of wrong candidates")
    loss: str = Field(BINARY, description="or pairwise or step_ranking of that module, or a function of your own")
    group_rows: int = Field(8, ge=2, description="most solutions of a problem that a loss compares with each other")
    eval_rows: int = Field(1000, ge=1, description="held out by problem for the convergence curve")
    orm_positions: Literal["last", "every_token"] = Field(
        "last", description="every_token: Cobbe et al., Lightman et al."
    )
    soft_labels: bool = Field(False, description="PRM targets are the shares of rollouts that succeed, where known")
    dropout: float = Field(0.1, ge=0, lt=1, description="on what a PRM's head reads (the paper's); an ORM has none")
    lm_weight: float = Field(0.0, ge=0, description="weight of the language loss on right solutions (Cobbe et al.)")
    calibration: Literal["none", "platt"] = Field(
        "none", description="platt: scores are made probabilities on the held-out rows"
    )
    consensus: bool = Field(False, description="only rows whose critique (not label-aware) finds the same first error")
    batch_rows: int = Field(512, ge=1)
    max_length: int = Field(512, ge=8)


class Sweep(Section):
    """Scale-up study: every amount of critiques with every seed is one trial, which makes a verifier of each kind."""

    critiques: tuple[Annotated[int, Field(ge=0)], ...] = (0, 5_000, 10_000, 15_000, 20_000, 25_000, 30_000)
    kinds: tuple[VerifierKind, ...] = ("orm",)
    seeds: tuple[Seed, ...] = (0,)
    problems: int | None = Field(None, ge=1, description="test problems scored in each trial, drawn at random")


class Primary(Section):
    """The comparison of Minos (all critiques) and base (none) that counts, named before it is made."""

    kind: VerifierKind = "orm"
    measure: Measure = "f1"

    @model_validator(mode="after")
    def an_orm_has_no_steps(self) -> "Primary":
        """Refuses what nothing will ever say."""
        if (self.kind, self.measure) == ("orm", "step_f1"):
            raise ValueError("an ORM scores no steps; step_f1 is for kind prm")
        return self


class Study(Section):
    """The claim as an experiment: for each seed own data and own trainings, with every share of the critiques.

    An ablation is an arm in which some keys of the config (dotted) have another value. It has all critiques, or none
    where `from_base` names it.
    """

    seeds: tuple[Seed, ...] = Field((), description="of problems, candidates, critiques and trainings; none: no study")
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field((0, 0.25, 0.5, 1), description="0 and 1 among them")
    labels: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="base and Minos with reward.rows times each of these as well, such as 0.25, 0.5, 2, 4"
    )
    kinds: tuple[VerifierKind, ...] = ("orm", "prm")
    primary: Primary = Primary()
    ablations: dict[ArmName, dict[str, Any]] = Field(default_factory=dict)
    from_base: tuple[ArmName, ...] = Field((), description="ablations without critiques")
    versus: dict[ArmName, ArmName] = Field(default_factory=dict, description="ablations also compared with another one")

    @model_validator(mode="after")
    def can_be_compared(self) -> "Study":
        """Each seed and share once; base and Minos are there; the primary comparison is of a kind that is trained."""
        for name, values in {
            "seeds": self.seeds,
            "shares": self.shares,
            "labels": self.labels,
            "kinds": self.kinds,
        }.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: each one once")
        if not {0, 1} <= set(self.shares):
            raise ValueError("shares must hold 0 (base) and 1 (Minos)")
        if self.primary.kind not in self.kinds:
            raise ValueError(f"primary.kind '{self.primary.kind}' is not among kinds")
        return self

    @field_validator("ablations")
    @classmethod
    def single_keys(cls, ablations: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Sections as dotted keys, for an ablation changes single keys; names that other arms have are errors."""
        if taken := [arm for arm in ablations if TAKEN.fullmatch(arm)]:
            raise ValueError(f"'{taken[0]}' is the name of another arm")
        dotted = {arm: dict(leaves(changes)) for arm, changes in ablations.items()}
        if empty := [arm for arm, changes in dotted.items() if {} in changes.values()]:
            raise ValueError(f"{empty[0]}: name the keys that it changes; {{}} is none")
        return dotted

    @model_validator(mode="after")
    def changes_are_not_its_own(self) -> "Study":
        """Seeds, places and amounts are the study's affair."""
        for arm, changes in self.ablations.items():
            if taken := sorted(key for key in changes if key in OWN or key.partition(".")[0] in OWN):
                raise ValueError(f"ablations.{arm}: the study itself sets {taken[0]}")
        for arm in self.from_base:
            if idle := [key for key in self.ablations.get(arm, {}) if key.partition(".")[0] in STAGE_1]:
                raise ValueError(f"ablations.{arm} has no stage 1, so that {idle[0]} means nothing")
        references = {*self.versus, *self.versus.values(), *self.from_base}
        if unknown := sorted(references - set(self.ablations)):
            raise ValueError(f"versus, from_base: '{unknown[0]}' is not among ablations")
        return self
