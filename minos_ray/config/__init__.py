"""What a user may write: sections, keys, defaults, and reading them from YAML."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# What random number generators take.
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
# A number of rows or workers that are wanted.
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the configuration: immutable; unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
