"""Headers that say when there is something left again."""

import time

import pytest

from minos_ray.critiques.retry import hold_s


def head(kind: str, remaining: str, reset: str, limit: str | None = None) -> dict[str, str]:
    """Headers of an endpoint."""
    known = {f"x-ratelimit-limit-{kind}": limit} if limit else {}
    return {f"x-ratelimit-remaining-{kind}": remaining, f"x-ratelimit-reset-{kind}": reset, **known}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        (head("requests", "3", "1s"), 0),
        (head("requests", "0", "6m0s"), 360),
        (head("requests", "0", "20ms"), 0.02),
        (head("requests", "0", "1m30.5s"), 90.5),
        (head("requests", "0", "7"), 7),
        (head("requests", "0", "60s", "120"), 0.5),
        (head("requests", "0", "1d"), 600),
        (head("requests", "0", "soon"), 0),
        (head("requests", "none", "9s"), 0),
        (head("tokens", "999", "9s"), 9),
        (head("tokens", "1000", "9s"), 0),
        (head("tokens", "0", "60s", "60000"), 1),
        (head("tokens", "0", "10s", "500"), 10),
        ({**head("requests", "0", "2s"), **head("tokens", "0", "3s")}, 3),
    ],
)
def test_seconds_to_hold(headers: dict[str, str], seconds: float) -> None:
    assert hold_s(headers, 1000) == pytest.approx(seconds)


def test_a_reset_may_be_a_moment() -> None:
    assert hold_s(head("requests", "0", str(time.time() + 30)), 1) == pytest.approx(30, abs=1)
