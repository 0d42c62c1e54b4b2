"""The same server as ingress of a Serve application, and the manifest that runs it on KubeRay."""

import asyncio
import json
import logging
import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from pydantic import ValidationError

from minos_ray.config.load import resolve
from minos_ray.errors import WorkStopped
from minos_ray.serving.contracts import CONTRACTS, BadField, Pairs, Reply, Served, parse, read_query
from minos_ray.serving.front import Front, Limits
from minos_ray.serving.serve import Settings, answer, application, share_of_cpus
from minos_ray.steps.encoding import question_text
from tests.raylets import free_ports
from tests.scoring.test_parity import saved
from tests.serving.server import wait_for

ROOT = Path(__file__).parents[2]


def manifest() -> dict[str, Any]:
    """kuberay/rayservice.yaml."""
    return yaml.safe_load((ROOT / "kuberay" / "rayservice.yaml").read_text())


def test_the_manifest_serves_what_the_command_serves() -> None:
    """Its Serve config passes Ray's schema, its arguments ours, and its cluster is like the RayJob's."""
    from ray.serve.schema import ServeDeploySchema

    service = manifest()
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (app,) = config.applications
    assert resolve(app.import_path) is application
    settings = Settings.model_validate(app.args)
    cluster = service["spec"]["rayClusterConfig"]
    job = yaml.safe_load((ROOT / "kuberay" / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    assert all(cluster[key] == job[key] for key in ("rayVersion", "authOptions", "enableInTreeAutoscaling"))
    (workers,) = cluster["workerGroupSpecs"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], workers)]
    (head,), (worker,) = (pod["containers"] for pod in pods)
    assert settings.model.startswith(worker["volumeMounts"][0]["mountPath"])
    (key,) = (env for env in worker["env"] if env["name"] == settings.api_key_env)
    assert "secretKeyRef" in key["valueFrom"] and head["env"] == worker["env"]
    assert {"name": "serve", "containerPort": config.http_options.port} in head["ports"]
    gpus = int(worker["resources"]["limits"]["nvidia.com/gpu"])
    assert gpus * workers["maxReplicas"] >= settings.most_replicas() * settings.gpus
    assert float(worker["resources"]["limits"]["cpu"]) >= gpus * settings.cpus
    image = job["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    assert {head["image"], worker["image"]} == {image}
    for pod in pods:
        assert {v["name"] for v in pod["volumes"]} == {m["name"] for m in pod["containers"][0]["volumeMounts"]}


ENDS = ["<|im_end|>", "<|eot_id|>", "</s>", "<end_of_turn>", "<eos>", "<|endoftext|>", "<|end|>", "<|return|>"]
LLAMA = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


@pytest.mark.parametrize(
    "end", [*ENDS, "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|im_end|>\n<|endoftext|>\n", "</s></s> "]
)
def test_end_tokens_are_not_read(end: str) -> None:
    """As OpenRLHF decodes: with special tokens. Also with the frame of the recipe's own command."""
    recipe = re.search(r"minos serve .*--prompt '(.*)'", (ROOT / "docs" / "recipes.md").read_text())
    assert recipe
    qwen = Settings(model="package:miniature/model", prompt=recipe[1]).served().prompt
    for frame in (qwen, LLAMA, question_text("{}")):
        prompt = frame.replace("{}", "3 + 4?")
        for solution in ("3 + 4 = 7\nThe answer is: 7", "Step 1: 3 + 4 = 7", "Is </s> a tag? 1 < 2 <|", ""):
            for begin in (None, prompt):
                assert read_query(prompt + solution + end, frame, "query.0", begin) == ("3 + 4?", solution)


def test_a_question_is_read_whole_and_several_frames_need_prompts() -> None:
    plain, asked = question_text("{}"), "Read this.\nQuestion: who?\nHow many?"
    assert read_query(question_text(asked) + "7", plain, "query.0", question_text(asked)) == (asked, "7")
    shots = question_text("1 + 1?") + "2\n\n" + question_text("3 + 4?")
    assert read_query(f"{shots}7", plain, "query.0", shots) == ("3 + 4?", "7")
    with pytest.raises(BadField, match=r"query.0: holds .* several times; only 'prompts' says"):
        read_query(f"{shots}7", plain, "query.0")


@pytest.mark.parametrize(
    ("path", "fields", "field"),
    [
        ("/score", {"question": "1", "solutions": [1] * 10_000}, "solutions.0"),
        ("/score", {"question": "1", "solutions": ["a", [None] * 10_000]}, "solutions.1.0"),
        ("/get_reward", {"query": [1] * 10_000}, "query.0"),
        ("/get_reward", {"query": ["a"], "prompts": [1] * 10_000}, "prompts.0"),
        ("/classify", {"input": [1] * 10_000}, "input.0"),
    ],
)
def test_a_malformed_body_makes_few_errors(path: str, fields: dict[str, Any], field: str) -> None:
    body = json.dumps(fields).encode()
    with pytest.raises(BadField) as error:
        parse(CONTRACTS[path], body)
    assert error.value.field == field
    with pytest.raises(ValidationError) as errors:
        CONTRACTS[path].model_validate_json(body)
    assert errors.value.error_count() < 5


def test_a_lost_reply_is_asked_for_again_and_the_watch_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray import serve
    from ray.exceptions import ObjectLostError

    reply, lost = Reply([0.5], [[0.5]], [None], True, 1, 1), ObjectLostError("00", None, "")

    async def first_lost() -> list[Reply]:
        calls.append(1)
        if len(calls) == 1:
            raise lost
        return [reply]

    def status() -> Any:
        states.append(1)
        if len(states) == 1:
            raise ValueError("something else")
        replica = SimpleNamespace(replica_states={"RUNNING": 1}, status="HEALTHY")
        return SimpleNamespace(applications={"app": SimpleNamespace(deployments={"Replica": replica})})

    async def run() -> None:
        watch = asyncio.create_task(front.watch())
        assert await front.ask_replica(["1?"], ["1"]) == reply
        while not front.ready:
            await asyncio.sleep(0.01)
        watch.cancel()

    calls: list[int] = []
    states: list[int] = []
    handle = SimpleNamespace(score=SimpleNamespace(remote=lambda *_: asyncio.ensure_future(first_lost())))
    front = Front("app", handle, Served("m"), Limits())
    monkeypatch.setattr(serve, "status", status)
    monkeypatch.setattr("minos_ray.serving.front.POLL_S", 0.01)
    with caplog.at_level(logging.ERROR):
        asyncio.run(asyncio.wait_for(run(), 60))
    assert len(calls) == 2 and "something else" in caplog.text


def test_requests_that_wait_share_a_call() -> None:
    """While two batches are in work the others wait; each gets its own reply, and one that fails fails alone."""
    sent: list[list[str]] = []

    async def score(batch: list[Pairs]) -> list[Reply | Exception]:
        sent.append([questions[0] for questions, _ in batch])
        await release.wait()
        replies = [Reply([float(questions[0])], [[]], [None], True, 1, 1) for questions, _ in batch]
        return [ValueError("broken") if reply.scores == [3] else reply for reply in replies]

    async def run() -> list[Any]:
        asked = [asyncio.create_task(front.ask_replica([str(number)], ["a"])) for number in range(8)]
        while len(sent) < 2:
            await asyncio.sleep(0)
        asked[4].cancel()
        release.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    release = asyncio.Event()
    handle = SimpleNamespace(score=SimpleNamespace(remote=lambda batch: asyncio.ensure_future(score(batch))))
    front = Front("app", handle, Served("m"), Limits(batch_tokens=6))  # three of them
    results = asyncio.run(asyncio.wait_for(run(), 60))
    assert sent == [["0"], ["1"], ["2", "3", "5"], ["6", "7"]] and not front.calls
    assert isinstance(results.pop(4), asyncio.CancelledError) and str(results.pop(3)) == "broken"
    assert [reply.scores for reply in results] == [[0], [1], [2], [5], [6], [7]]


def test_a_model_that_does_not_come_up_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={}))
    monkeypatch.setattr("minos_ray.serving.serve.WAIT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(WorkStopped, match="none has come up"):
        asyncio.run(answer(Front("app", None, Served("m"), Limits()), listener, "http://127.0.0.1"))


@pytest.mark.slow
def test_serve_runs_it_as_an_application(local_ray: None, tmp_path: Path) -> None:
    import ray
    from ray import serve

    [port] = free_ports(1)
    client = httpx.Client(trust_env=False, timeout=120, base_url=f"http://127.0.0.1:{port}")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        settings = Settings(model=saved(tmp_path, "prm"), cpus=1, max_body_mb=0.01)
        assert share_of_cpus(settings) == ray.cluster_resources()["CPU"]
        serve.run(application(settings), name="minos")
        wait_for(lambda: client.get("/health").status_code == 200)
        body = {"question": "1 + 1?", "solutions": ["Step 1: 1 + 1 = 2", ""]}
        reply = client.post("/score", json=body)
        assert reply.status_code == 200 and reply.json()["reasons"] == [None, "no_steps"]
        assert client.post("/score", json={"question": "1"}).status_code == 422
        assert client.post("/score", json=body | {"question": "1" * 20_000}).status_code == 413
        assert 'minos_serve_requests_total{path="/score",status="200"} 1.0' in client.get("/metrics").text
    finally:
        serve.shutdown()
