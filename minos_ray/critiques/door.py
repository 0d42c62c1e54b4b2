"""The door of a critic's server: no route of it answers without the key.

vLLM's own check covers some paths only: 0.32 lets anybody in at `/invocations` (chat), `/tokenize` or `/metrics`.
"""

import hashlib
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

KEY_ENV = "VLLM_API_KEY"
UNAUTHORIZED = b'{"error": {"message": "wrong API key", "type": "authentication_error", "code": 401}}'


class Door:
    """ASGI middleware around the whole app; the key is what $VLLM_API_KEY holds when the server starts."""

    def __init__(self, app: App) -> None:
        if not os.environ.get(KEY_ENV):
            raise ValueError(f"{KEY_ENV} is not set: nobody would be kept out")
        self.app, self.key = app, digest(os.environ[KEY_ENV].encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through with the key; anything but the server's own start and end needs one."""
        if scope["type"] == "lifespan" or self.opens(scope):
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008})
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(UNAUTHORIZED)).encode())]
        await send({"type": "http.response.start", "status": 401, "headers": head})
        await send({"type": "http.response.body", "body": UNAUTHORIZED})

    def opens(self, scope: Scope) -> bool:
        """Whether the one header `Authorization` is `Bearer KEY`; the time that takes tells nothing of the key."""
        given = [value for name, value in scope.get("headers", ()) if name.lower() == b"authorization"]
        kind, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        return secrets.compare_digest(digest(key), self.key) and kind.lower() == b"bearer"


def digest(key: bytes) -> bytes:
    """Of equal length for all keys."""
    return hashlib.sha256(key).digest()
