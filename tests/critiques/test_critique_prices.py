"""Prices: the config wins, unknown ones are said to be unknown, the table names its sources."""

import datetime

import pytest
import yaml

from minos_ray.config.schema import Critique
from minos_ray.critiques.limits import TABLE, has_prices, priced, prices
from minos_ray.errors import UserError


def test_every_price_has_a_public_source_and_a_date() -> None:
    sources = yaml.safe_load(TABLE.read_text())
    models = [model for source in sources for model in source["prices"]]
    assert len(models) == len(set(models)) > 15
    for source in sources:
        assert source["source"] and isinstance(source["date"], datetime.date)
        for asked, written in source["prices"].values():
            assert 0 <= asked <= written <= 200


def test_the_config_wins() -> None:
    assert prices(Critique(model="gpt-4.1")) == (2, 8)
    assert prices(Critique(model="gpt-4.1", usd_per_million_output=9)) == (2, 9)
    free = priced(Critique(model="gpt-4.1", usd_per_million_input=0, usd_per_million_output=0))
    assert (free.usd_per_million_input, free.usd_per_million_output) == (0, 0)


def test_unknown_prices() -> None:
    section = Critique(model="of-my-own", usd_per_million_input=1)
    assert not has_prices(section) and priced(section).usd_per_million_output == 0
    with pytest.raises(UserError, match=r"critique\.max_usd = 5, but no price of critique\.model = 'of-my-own'"):
        priced(section.model_copy(update={"max_usd": 5.0}))
