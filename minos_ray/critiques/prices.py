"""What a model costs: the config's prices, else those of `prices.yaml`."""

from functools import cache
from pathlib import Path

import yaml

from minos_ray.config.schema import Critique
from minos_ray.errors import UserError

TABLE = Path(__file__).with_name("prices.yaml")


@cache
def table() -> dict[str, tuple[float, float]]:
    """Model -> USD per million input and output tokens."""
    sources = yaml.safe_load(TABLE.read_text())
    return {model: (asked, written) for source in sources for model, (asked, written) in source["prices"].items()}


def has_prices(section: Critique) -> bool:
    """Whether both prices are known."""
    return None not in prices(section)


def prices(section: Critique) -> tuple[float | None, float | None]:
    """USD per million input and output tokens, None where nobody says."""
    asked, written = table().get(section.model, (None, None))
    own = section.usd_per_million_input, section.usd_per_million_output
    return (asked if own[0] is None else own[0], written if own[1] is None else own[1])


def priced(section: Critique) -> Critique:
    """The section with its prices filled in. UserError when there is a limit on money and no price to hold it by."""
    if not has_prices(section) and section.max_usd is not None:
        raise UserError(
            f"critique.max_usd = {section.max_usd:g}, but no price of critique.model = '{section.model}' is known: "
            "set critique.usd_per_million_input and critique.usd_per_million_output"
        )
    asked, written = prices(section)
    return section.model_copy(update={"usd_per_million_input": asked or 0, "usd_per_million_output": written or 0})
