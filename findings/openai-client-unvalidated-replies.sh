#!/bin/bash
# openai 3.52.0 (Python client), Python 3.11.
# The client does not check what a chat completion looks like: it hands on whatever JSON came with status 200. Its types
# say `content: str | None` and `prompt_tokens: int`; Mistral's reasoning models answer with a list of chunks, gateways with
# counts that are null, and with `choices: null` beside an `error` of status 429, which raises nothing.
# Seen: content is a list, prompt_tokens is None, choices is None without an exception.
# minos_ray/critiques/reply.py therefore reads the JSON itself (`read`, `error_inside`, `tokens`).
set -e
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q openai==3.52.0
"$folder/venv/bin/python" - <<'PY'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai

CHUNKS = [{"type": "thinking", "thinking": [{"type": "text", "text": "2 + 2"}]}, {"type": "text", "text": "4"}]
REPLIES = {
    "chunks": {"choices": [{"index": 0, "message": {"role": "assistant", "content": CHUNKS}, "finish_reason": "stop"}]},
    "nulls": {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None},
    },
    "error": {"choices": None, "error": {"message": "Rate limit exceeded", "code": 429}},
}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(REPLIES[asked["model"]]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", max_retries=0)
asked = {name: client.chat.completions.create(model=name, messages=[{"role": "user", "content": "2 + 2?"}]) for name in REPLIES}
seen = {
    "type of content": type(asked["chunks"].choices[0].message.content).__name__,
    "prompt_tokens": asked["nulls"].usage.prompt_tokens,
    "choices beside an error": asked["error"].choices,
}
print(seen)
as_described = seen == {"type of content": "list", "prompt_tokens": None, "choices beside an error": None}
sys.exit(0 if as_described else 1)
PY
