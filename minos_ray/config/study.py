"""The sections of the configuration that say what is compared over several trainings; see `sections`."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from minos_ray.config.base import Section, Seed, leaves

Kind = Literal["orm", "prm"]
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


class Sweep(Section):
    """Scale-up study: every amount of critiques with every seed is one trial, which makes a verifier of each kind."""

    critiques: tuple[Annotated[int, Field(ge=0)], ...] = (0, 5_000, 10_000, 15_000, 20_000, 25_000, 30_000)
    kinds: tuple[Kind, ...] = ("orm",)
    seeds: tuple[Seed, ...] = (0,)
    problems: int | None = Field(None, ge=1, description="test problems scored in each trial, drawn at random")


class Primary(Section):
    """The comparison of Minos (all critiques) and base (none) that counts, named before it is made."""

    kind: Kind = "orm"
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
    kinds: tuple[Kind, ...] = ("orm", "prm")
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
