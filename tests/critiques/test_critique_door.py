"""The middleware of the critic's server around a real application with routes of all kinds."""

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from minos_ray.critiques.serve import KeyOnEveryRoute

KEY = "k-0123456789"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """vLLM's kinds of routes: guarded by itself, unguarded, its own pages, a mounted app, a socket."""
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    app = FastAPI()
    for path in ("/v1/chat/completions", "/invocations", "/tokenize"):
        app.post(path)(lambda: {"served": True})
    app.get("/health")(lambda: {"served": True})
    app.mount("/metrics", FastAPI())

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("served")

    app.add_middleware(KeyOnEveryRoute)
    return TestClient(app)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": KEY},
        {"Authorization": f"Bearer  {KEY}"},
        {"X-Api-Key": KEY},
        [("Authorization", "Bearer x"), ("Authorization", f"Bearer {KEY}")],
        {"Authorization": "Bearer \u00e9".encode()},
    ],
)
def test_no_route_lets_in_without_the_key(client: TestClient, headers: Any) -> None:
    routes = [
        (route.path, method) for route in client.app.routes for method in getattr(route, "methods", None) or ["GET"]
    ]
    assert len(routes) > 8
    for path, method in [*routes, ("/none", "GET"), ("/health", "OPTIONS"), ("/health", "TRACE")]:
        assert client.request(method, path, headers=headers).status_code == 401, (method, path)
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/realtime"):
        pass


def test_the_key_opens_every_route(client: TestClient) -> None:
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {KEY}"}
        assert client.post("/invocations", headers=headers).json() == {"served": True}
        assert client.get("/none", headers=headers).status_code == 404
    with client.websocket_connect("/v1/realtime", headers=headers) as socket:
        assert socket.receive_text() == "served"


def test_the_start_of_the_server_passes_and_no_key_at_all_is_no_open_door(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    monkeypatch.setenv("VLLM_API_KEY", KEY)
    asyncio.run(KeyOnEveryRoute(app)({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]
    monkeypatch.setenv("VLLM_API_KEY", "")
    with pytest.raises(ValueError, match="nobody would be kept out"):
        KeyOnEveryRoute(app)
