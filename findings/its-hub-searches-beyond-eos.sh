#!/bin/bash
# its-hub 1.2.0: a step-wise search ends a solution only at `stop_token` or `max_steps`; it never learns that the model
# has ended its text (EOS), because the reason is thrown away with the rest of the server's choice. Without a stop token
# that every solution of the model contains, each is asked for further steps after its end until `max_steps`, and these
# are part of the solution. The server below ends every text at its third step.
# Output seen:  stop_token="The answer is": 3 levels, 3 steps | stop_token=None: 8 levels, 8 steps
# In minos_ray: search/searcher.py (`receive`) reads the reason of each step; benchmarks/search.py gives its-hub a stop token.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "its-hub[lm]==1.2.0" 2> "$folder/log" || { cat "$folder/log"; exit 2; }
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from its_hub.core.algorithms.beam_search import BeamSearch
from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel
from its_hub.core.lms.step_generation import StepGeneration

SOLUTION = ["One.", "Two.", "The answer is: 3"]


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        last = body["messages"][-1]
        steps = last["content"].count("\n") if last["role"] == "assistant" else 0
        # What vLLM answers: a step that ended at the stop string, or at EOS (no stop string), and no text after EOS.
        text = SOLUTION[steps] if steps < 3 else ""
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        choice["stop_reason"] = "\n" if steps < 2 else None
        answer = json.dumps({"choices": [choice], "usage": {}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


class Prm:
    levels = 0

    async def ascore(self, prompt, responses):
        self.levels += 1
        return [0.5] * len(responses)


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
model = OpenAICompatibleLanguageModel(f"http://127.0.0.1:{server.server_port}/v1", "none", "model")
seen = []
for stop in ("The answer is", None):
    prm = Prm()
    search = BeamSearch(StepGeneration(7, step_token="\n", stop_token=stop), prm, 1)
    result = asyncio.run(search.ainfer(model, "How many?", 1, return_response_only=False))
    name = f'"{stop}"' if stop else None
    seen.append(f"stop_token={name}: {prm.levels} levels, {result.steps_used[0]} steps")
print(" | ".join(seen))
raise SystemExit(seen != ['stop_token="The answer is": 3 levels, 3 steps', "stop_token=None: 8 levels, 8 steps"])
PYTHON
