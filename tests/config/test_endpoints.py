"""What a config may add to the requests of a critic."""

from typing import Any

import pytest
from pydantic import ValidationError

from minos_ray.config.load import build, secret
from minos_ray.config.schema import Critique, MetaCritic
from minos_ray.critiques.endpoint import headers
from minos_ray.errors import UserError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("extra_headers", {"Authorization": "Bearer abc"}),
        ("extra_headers", {"api-key": "abc"}),
        ("extra_headers", {"api-key": "$ORGANISATION"}),
        ("extra_headers", {"X-Org": "sk-0123456789"}),
        ("extra_headers", {"X-Org": "Bearer abc"}),
        ("extra_headers", {"X Org": "a"}),
        ("extra_headers", {"X-Org": "a\nX-Other: b"}),
        ("extra_body", {"temperature": 1}),
        ("extra_body", {"messages": []}),
        ("extra_body", {"stream": True}),
        ("extra_body", {"provider": [{"api_key": "abc"}]}),
        ("extra_body", {"x": float("nan")}),
        ("extra_body", {"x": {1, 2}}),
        ("extra_body", {"x": "\ud83d"}),
        ("base_url", "https://me:abc@host/v1"),
        ("base_url", "https://host/v1?api-key=abc"),
        ("top_p", 0),
        ("reasoning_effort", ""),
    ],
)
@pytest.mark.parametrize("section", [Critique, MetaCritic])
def test_what_no_request_can_have_and_secrets_are_refused(section: type[Critique], key: str, value: Any) -> None:
    with pytest.raises(ValidationError) as error:
        section(**{key: value})
    assert key.split(".")[0] in str(error.value) or "environment" in str(error.value)


def test_the_line_about_a_secret_does_not_show_it() -> None:
    with pytest.raises(UserError, match=r"'critique': .*extra_headers.api-key may hold a secret") as error:
        build({"run": "r", "base": {"model": "x"}, "critique": {"extra_headers": {"api-key": "abc123"}}})
    assert "abc123" not in str(error.value)


def test_a_header_whose_variable_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATEWAY_KEY", raising=False)
    with pytest.raises(
        UserError, match=r"critique\.extra_headers\.api-key: the environment variable GATEWAY_KEY is not"
    ):
        headers(Critique(extra_headers={"api-key": "$GATEWAY_KEY"}))


@pytest.mark.parametrize(
    "keys",
    [
        {"extra_headers": {"X-Org": "minos", "api-key": "$AZURE_API_KEY", "X-Region": "$REGION"}},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}, "min_tokens": 3, "service_tier": "flex"}},
        {"base_url": "https://host:8000/path@2/v1?api-version=1"},
    ],
)
def test_what_endpoints_want_is_taken(keys: dict[str, Any]) -> None:
    section = Critique(**keys)
    assert section.model_dump(include=keys.keys()) == keys


@pytest.mark.parametrize("value", ["sk-1\nx", "sk-1\x00", "sk-\u00e9"])
def test_a_key_that_no_header_can_hold_is_refused_unnamed(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr("os.environ", {"CRITIC_KEY": f" {value}\n", "GOOD_KEY": " sk-2\n"})
    with pytest.raises(UserError, match=r"\$CRITIC_KEY holds characters that no key has") as error:
        secret("CRITIC_KEY")
    assert "sk-" not in str(error.value) and secret("GOOD_KEY") == "sk-2"
