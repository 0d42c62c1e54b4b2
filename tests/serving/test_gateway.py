"""The same server as ingress of a Serve application, and the manifest that runs it on KubeRay."""

import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from minos_ray.config.load import resolve
from minos_ray.serving.serve import Settings, application
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


@pytest.mark.slow
def test_serve_runs_it_as_an_application(local_ray: None, tmp_path: Path) -> None:
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    client = httpx.Client(trust_env=False, timeout=120, base_url=f"http://127.0.0.1:{port}")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        settings = Settings(model=saved(tmp_path, "prm"), cpus=1, max_body_mb=0.01)
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
