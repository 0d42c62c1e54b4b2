"""Jobs: every stage has its script, and one really runs through `ray job submit`."""

import json
import os
import runpy
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from minos_ray.cli import STAGES
from minos_ray.config.load import load_config
from minos_ray.errors import UserError
from minos_ray.pipeline import open_run
from tests.raylets import free_ports
from tests.runs import make_run

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def test_every_stage_has_a_short_job() -> None:
    scripts = {path.stem: path for path in (ROOT / "jobs").glob("*.py")}
    assert set(scripts) == {*STAGES, "pipeline", "critic_server", "search", "serve"}
    for path in scripts.values():
        assert len(path.read_text().splitlines()) <= 15
        runpy.run_path(str(path))  # importing a job starts nothing


@pytest.mark.parametrize("stage", ["pipeline", "sample"])
def test_a_job_refuses_like_the_command(stage: str) -> None:
    command = [sys.executable, f"jobs/{stage}.py", "miniature", "sample.nn_test=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean 'n_test'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_in_the_working_directory_of_a_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="'runs/x' would be lost"):
        open_run(load_config("miniature", ["run=runs/x"]))
    assert open_run(load_config("miniature", [f"run={tmp_path}/x"])).exists("config.yaml")


def test_the_runtime_environment_leaves_out_what_is_large() -> None:
    from ray.runtime_env import RuntimeEnv

    environment = RuntimeEnv(**yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text()))
    assert {".git", ".venv*", "runs"} <= set(environment["excludes"])


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """As in a shell with the virtual environment active, of somebody who holds no token."""
    own = {"PATH": f"{BIN}:{os.environ['PATH']}", "VIRTUAL_ENV": str(BIN.parent), "RAY_AUTH_MODE": "token"}
    return {**os.environ, **own, "RAY_AUTH_TOKEN": ""}


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """How somebody who may do so says the token: the path of a file that holds it."""
    path = tmp_path_factory.mktemp("token") / "auth_token"
    path.write_text(secrets.token_hex(32))
    return {"RAY_AUTH_TOKEN_PATH": str(path)}


def local(gcs: str) -> dict[str, Any]:
    """cluster.yaml for Ray's own provider of nodes on this machine: the same types of node, with at most two CPUs."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
    from ray.autoscaler._private.util import prepare_config

    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    types = config["available_node_types"]
    types[FAKE_HEAD_NODE_TYPE] = types.pop(config["head_node_type"])
    for kind in types.values():
        kind["resources"].update(CPU=min(kind["resources"]["CPU"], 2), object_store_memory=100 << 20)
    nothing: dict[str, Any] = {"docker": {}, "file_mounts": {}, "initialization_commands": []}
    nothing |= {"head_start_ray_commands": [], "worker_start_ray_commands": []}
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    provider = {"type": "external", "module": module, "gcs_address": gcs, "head_node_id": FAKE_HEAD_NODE_ID}
    return {**config, **nothing, "provider": provider, "head_node_type": FAKE_HEAD_NODE_TYPE}


def growing() -> dict[str, str]:
    """What the head of `local` needs to know: the newer autoscaler, as KubeRay's, and its own place among the nodes."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    names = ("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING")
    switches = ("RAY_FAKE_CLUSTER", "RAY_enable_autoscaler_v2", "AUTOSCALER_UPDATE_INTERVAL_S")
    return {**dict.fromkeys(names, FAKE_HEAD_NODE_ID), **dict.fromkeys(switches, "1")}


@pytest.fixture(scope="module")
def head(environment: dict[str, str], token: dict[str, str]) -> Iterator[str]:
    """The head of `local` on loopback; yields the address of its job server, ends all its processes."""
    gcs, dashboard, client, agent, metrics = free_ports(5)
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        nodes = Path(folder, "cluster.json")
        nodes.write_text(json.dumps(local(f"127.0.0.1:{gcs}")))
        command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=0", f"--temp-dir={folder}"]
        command += [f"--autoscaling-config={nodes}", "--labels=pool=head"]
        command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--port={gcs}"]
        command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
        command += [f"--object-store-memory={100 << 20}", "--disable-usage-stats"]
        own = {**environment, **token, **growing()}
        with open(f"{folder}/out", "wb") as out:
            process = subprocess.Popen(command, env=own, stdout=out, stderr=out, start_new_session=True)
        try:
            wait_for_port(dashboard, process, Path(f"{folder}/out"))
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            end(process)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns once somebody listens; fails with the log when the process ended or two minutes passed."""
    for _ in range(240):
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError(log.read_text())


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all its descendants."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=5)
    for each in alive:
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            each.kill()
    process.kill()
    process.wait()


def submit(head: str, environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit` of the repository, to its end."""
    line = [BIN / "ray", "job", "submit", "--address", head, "--runtime-env", "jobs/runtime_env.yaml"]
    line += ["--working-dir", ".", "--", *command]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)


# A raylet that starts in the same session clears the folder of working directories, which real nodes do not share.
LABEL_ON_A_NEW_NODE = """
import os, ray, sys
from minos_ray.cli import main
os.chdir("/")
ray.init(log_to_driver=False)
ray.get(ray.remote(num_cpus=1)(lambda: None).remote())
print("pools:", *sorted(node["Labels"]["pool"] for node in ray.nodes() if node["Alive"]))
sys.exit(main(["label", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_stage_as_a_submitted_job_on_a_cluster_that_grows(
    head: str, environment: dict[str, str], token: dict[str, str], tmp_path: Path
) -> None:
    """From a head without work: a CPU node comes, no GPU node; every process shows the token."""
    run = make_run(tmp_path / "run", [20, 20])
    run.delete("labels")
    settings = [f"run={run.path}", "label.steps=null", "inserted.count=0"]
    job = ["python", "-c", LABEL_ON_A_NEW_NODE, "miniature", *settings]
    done = submit(head, {**environment, **token}, *job)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pools: cpu head" in done.stdout
    assert "succeeded" in done.stdout
    manifest = run.artefact("labels").manifest()
    assert manifest is not None
    assert manifest.counts["rows"] == 40


def test_without_the_token_no_job_is_taken(head: str, environment: dict[str, str]) -> None:
    done = submit(head, {**environment, "RAY_AUTH_MODE": "disabled"}, "python", "-c", "print('taken')")
    assert done.returncode == 1
    assert "taken" not in done.stdout
    assert "AuthenticationError" in done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer " + "0" * 64}], ids=["none", "another"])
def test_the_job_server_answers_nobody_without_the_token(head: str, headers: dict[str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{head}/api/jobs/", headers=headers), timeout=60)
    assert caught.value.code in (401, 403)


def test_the_job_server_answers_with_the_token(head: str, token: dict[str, str]) -> None:
    said = Path(token["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(f"{head}/api/jobs/", headers={"Authorization": f"Bearer {said}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
