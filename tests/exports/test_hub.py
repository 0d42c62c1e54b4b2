"""Models as folders for the hub, and uploads to a stand-in of the hub that speaks its protocol on this machine."""

import base64
import hashlib
import http.server
import json
import os
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from minos_ray.cli import main
from minos_ray.config.resources import Scoring, Workers
from minos_ray.config.schema import Model
from minos_ray.config.training import Reward
from minos_ray.exports import send
from minos_ray.exports.hub import measured, source_of
from minos_ray.scoring.verifier import load
from minos_ray.store.run import Run
from minos_ray.training.data import Job, Table
from minos_ray.training.results import card
from tests.runs import make_run, scores
from tests.scoring.test_parity import saved

TOKEN = "hf_" + "a" * 20
LICENSES = ("mit", "apache-2.0", "other")


class Hub(http.server.ThreadingHTTPServer):
    """A hub with one user, `me`; `repos` holds the files of each repository, `blobs` what came as LFS objects.

    What comes by Xet lies in the folder `store`, in Xet's own format; then the file is known by its digest.
    """

    def __init__(self, store: Path) -> None:
        super().__init__(("127.0.0.1", 0), Calls)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.store, self.xet = store, True
        self.broken: str | None = None  # part of a path that answers 503


class Calls(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        if "/xet-write-token/" not in self.path or not self.server.xet:
            return self.answer(404, {"error": "not here"})
        values = {"Cas-Url": f"local://{self.server.store}", "Access-Token": "x", "Token-Expiration": str(2**40)}
        token = {"casUrl": values["Cas-Url"], "accessToken": "x", "exp": 2**40}
        self.answer(200, token, {f"X-Xet-{name}": value for name, value in values.items()})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        name = self.path.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == name
        self.server.blobs[name] = content
        self.answer(200, {})

    def do_POST(self) -> None:
        body, path = self.rfile.read(int(self.headers["Content-Length"])), self.path.split("?")[0]
        if self.server.broken is not None and self.server.broken in path:
            return self.answer(503, {"error": "down for a while"})
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.validate(json.loads(body)["content"])
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = ["lfs" if file["path"].endswith(("safetensors", "parquet")) else "regular" for file in files]
            pairs = zip(files, modes, strict=True)
            self.answer(200, {"files": [{"path": f["path"], "uploadMode": m, "shouldIgnore": False} for f, m in pairs]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [{**o, "actions": {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}}} for o in objects]
            self.answer(200, {"transfer": "basic", "objects": actions})
        else:
            self.commit(path, [json.loads(line) for line in body.splitlines()])

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        name = f"datasets/{name}" if wanted.get("type") == "dataset" else name
        if wanted["organization"] != "me":
            return self.answer(403, {"error": "You do not have the rights to create a model under this namespace"})
        if name in self.server.repos:
            url = f"{self.server.url}/{name}"
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        self.server.repos[name], self.server.private[name] = {}, wanted.get("visibility") == "private"
        self.answer(200, {"url": f"{self.server.url}/{name}"})

    def validate(self, content: str) -> None:
        terms = yaml.safe_load(content.split("---")[1]).get("license")
        errors = [] if terms in LICENSES else [{"message": f'"license" must be one of {LICENSES}'}]
        self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def commit(self, path: str, lines: list[dict[str, Any]]) -> None:
        kind, name = re.fullmatch(r"/api/(models|datasets)/(.+)/commit/main", path).groups()  # type: ignore[union-attr]
        files = self.server.repos[f"datasets/{name}" if kind == "datasets" else name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs.get(value["oid"], value["oid"].encode())
        self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/0", "commitOid": "0" * 40})

    def answer(self, code: int, content: dict[str, Any], headers: Mapping[str, str] = MappingProxyType({})) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        about = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        for name, value in about.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The hub that this process uploads to, large files as LFS objects."""
    from huggingface_hub import constants

    with Hub(tmp_path / "xet") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in {"ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with an ORM from a base in a folder, which `orm-base` names by its path, and files that no model needs."""
    folder = tmp_path_factory.mktemp("hub")
    made, base = make_run(folder / "run", [4] * 3), folder / "base"
    saved(folder, "orm")
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    for file in (folder / "verifier").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    table = Table(name="t", rows=8, held_out_rows=2, train="", held_out="", dropped={})
    job = Job(
        artefact="models/orm-base", kind="orm", start=Model(model=str(base)), table=table, section=Reward(),
        workers=Workers(), key="k",
    )  # fmt: skip
    details = {"start": str(base), "weights_of_step": 4, "curve": []}
    artefact = made.artefact("models/orm-base")
    artefact.begin({"for": "test"})
    made.upload(str(folder / "verifier"), "models/orm-base")
    config = json.loads(made.read_bytes("models/orm-base/config.json"))
    values = {**config, "_name_or_path": str(base), "step_encoding": {**config["step_encoding"], "system": "/no_think"}}
    made.write_bytes("models/orm-base/config.json", json.dumps(values).encode())
    made.write_bytes("models/orm-base/README.md", card(job, details).encode())
    for name in ("optimizer.pt", "checkpoint-4/model_states.pt", "training_args.bin"):
        made.write_bytes(f"models/orm-base/{name}", b"state")
    artefact.complete({"rows": 8}, {}, details)
    rows = {"verifier": "orm-base", "n": 4, "ci_low": 0.5, "ci_high": 0.75, "problems": 3}
    methods = [{"method": "best-of-n", "accuracy": 0.625, **rows}, {"method": "weighted-vote", "accuracy": 0.7, **rows}]
    meta = [{"verifier": "orm-base", "level": "outcome", "accuracy": 0.6, "f1": 0.55, "auc": None}]
    scores(made, "orm-base", 0.3)
    evaluation = made.artefact("evaluation.json")
    evaluation.begin({"for": "test"})
    made.write_bytes("evaluation.json", json.dumps({"methods": methods, "meta": meta}).encode())
    evaluation.complete({}, {})
    return made


def head(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---")[1])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_has_the_model_its_card_and_nothing_else(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported = send("hub", run, str(out), datasets="openai/gsm8k")
    files = set(contents(out))
    assert files == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert exported.counts["files"] == len(files) and exported.dropped == {"files that are no part of a model": 3}
    assert exported.counts["bytes"] == pytest.approx(sum(path.stat().st_size for path in out.iterdir()), rel=0.01)
    for name in ("README.md", "config.json", "tokenizer_config.json"):
        assert str(Path(run.root).parent) not in (out / name).read_text()
    assert (out / "model.safetensors").read_bytes() == run.read_bytes("models/orm-base/model.safetensors")
    text = (out / "README.md").read_text()
    values = head(text)
    assert values["license"] == "apache-2.0", "that of the base model"
    assert values["datasets"] == ["openai/gsm8k"] and values["pipeline_tag"] == "text-classification"
    [results] = values["model-index"]
    assert results["name"] == "orm-base"
    assert results["results"][0]["dataset"] == {"name": "small", "type": "unknown", "split": "test"}
    assert json.loads((out / "config.json").read_text())["step_encoding"]["system"] == "/no_think"
    metrics = {metric["name"]: metric["value"] for metric in results["results"][0]["metrics"]}
    assert metrics["best of 4"] == 0.625 and metrics["weighted vote of 4"] == 0.7 and len(metrics) == 4
    assert "| best of 4 | 0.6250 | 0.5000 to 0.7500 |" in text and "from `base`" in text


def test_the_lines_of_the_exported_card_score(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    send("hub", Run(f"{run.root}/models/orm-base"), str(out))
    lines = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert lines is not None
    (tmp_path / "score.py").write_text(lines[1])
    monkeypatch.chdir(out)
    variables = runpy.run_path(str(tmp_path / "score.py"))
    [expected] = load(str(out), False, Scoring()).score([(variables["question"], variables["steps"])])[0]
    assert variables["scores"] == pytest.approx(expected, abs=1e-5)


def test_a_base_on_the_hub_is_named_and_a_copied_model_has_no_evaluation(run: Run, tmp_path: Path) -> None:
    out, copied = tmp_path / "out", tmp_path / "orm-base"
    run.download("models/orm-base", str(copied.mkdir() or copied))
    send("hub", Run(str(copied)), str(out), base_model="org/base", license="mit")
    values = head((out / "README.md").read_text())
    assert values["base_model"] == "org/base" and values["license"] == "mit" and "model-index" not in values
    assert json.loads((out / "config.json").read_text())["_name_or_path"] == "org/base"
    assert measured(source_of(Run(str(copied)), None)) == []


def test_only_scores_of_the_model_as_it_is_now_are_results(run: Run) -> None:
    source, artefact = source_of(run, None), run.artefact("scores/orm-base")
    for model, rows in {run.artefact(source.artefact).manifest().fingerprint: 4, "another": 0}.items():  # type: ignore[union-attr]
        made = artefact.read()
        artefact.begin({"needs": {"models/orm-base": model}})
        artefact.write_part("0", made)
        artefact.complete({}, {})
        assert len(measured(source)) == rows
    artefact.begin({"import": "again"})
    artefact.write_part("0", made)
    artefact.complete({}, {})
    assert len(measured(source)) == 4


def test_an_upload_is_the_folder_and_private(run: Run, hub: Hub, tmp_path: Path) -> None:
    """The command as users run it, with the weights by Xet, as the hub stores them today."""
    out = tmp_path / "out"
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "minos_ray", "export", "hub", run.root, str(out), "upload=me/orm", "license=mit"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}, {hub.url}/me/orm: files 5, bytes ")
    weights = (out / "model.safetensors").read_bytes()
    stored = {"model.safetensors": hashlib.sha256(weights).hexdigest().encode()}
    assert hub.repos["me/orm"] == contents(out) | stored and hub.private["me/orm"]
    assert sum(path.stat().st_size for path in hub.store.rglob("*")) > 0.8 * len(weights)
    assert 'steps = "me/orm", ' in hub.repos["me/orm"]["README.md"].decode()
    assert TOKEN not in done.stdout + done.stderr + "".join(map(repr, hub.repos["me/orm"].values()))
    hub.xet, command[-2:] = False, ["upload=me/other", "license=mit"]
    command[6] = f"{out}-again"
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"without Xet: HF_HUB_DISABLE_XET=1; the folder is complete: hf upload me/other {out}-again" in done.stderr


def test_data_sets_are_uploaded_as_such(run: Run, hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "data"
    send("huggingface", run, str(out), upload="me/data", license="mit", private=False)
    files = hub.repos["datasets/me/data"]
    assert files == contents(out) and "problems/test-00000-of-00001.parquet" in files
    assert head(files["README.md"].decode())["license"] == "mit" and not hub.private["datasets/me/data"]


def refused(capsys: pytest.CaptureFixture[str], run: Run, out: Path, *options: str, code: int = 2) -> str:
    """The one line of a command that ends with that code."""
    capsys.readouterr()
    assert main(["export", "hub", run.root, str(out), *options]) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and TOKEN not in captured.err and not captured.out
    return captured.err


def test_what_the_hub_refuses_is_one_line(
    run: Run, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    out = tmp_path / "out"
    assert "may not write to 'other/orm' (403)" in refused(capsys, run, out, "upload=other/orm")
    assert "not of the form NAMESPACE/NAME" in refused(capsys, run, out, "upload=orm")
    hub.repos["me/orm"] = {}
    assert "with update=true it gets a new commit (409)" in refused(capsys, run, out, "upload=me/orm")
    assert not out.exists(), "refused before anything was written"
    assert main(["export", "hub", run.root, str(out), "upload=me/orm", "update=true"]) == 0
    assert hub.repos["me/orm"] == contents(out)
    line = refused(capsys, run, tmp_path / "a", "upload=me/orm", "update=true", "license=unheard-of")
    assert "Invalid metadata in README.md" in line and f"hf upload me/orm {tmp_path}/a" in line
    hub.broken = "/commit/"
    line = refused(capsys, run, tmp_path / "b", "upload=me/orm", "update=true", "license=mit", code=1)
    assert "down for a while (503); the folder is complete: hf upload me/orm" in line
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_token")
    assert "does not accept the token in HF_TOKEN (401)" in refused(capsys, run, tmp_path / "c", "upload=me/orm")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "does not answer (ConnectError: " in refused(capsys, run, tmp_path / "c", "upload=me/orm", code=1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(capsys, run, tmp_path / "c", "upload=me/orm")
    monkeypatch.delenv("HF_TOKEN")
    assert "environment variable HF_TOKEN is not set" in refused(capsys, run, tmp_path / "c", "upload=me/orm")
    assert not (tmp_path / "c").exists()


def test_licences_and_models_must_be_named(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, base = tmp_path / "out", Path(run.root).parent / "base"
    terms = (base / "README.md").read_text()
    try:
        for text in ("no head", "---\nlicense: [mit, apache-2.0]\n---\n", "---\nlicense: [mit\n---\n"):
            (base / "README.md").write_text(text)
            assert "the licence of 'orm-base' is not known (the card of its base" in refused(capsys, run, out)
    finally:
        (base / "README.md").write_text(terms)
    assert "needs license_name and license_link" in refused(capsys, run, out, "license=other")
    assert "model = orm-minos; " in refused(capsys, run, out, "model=orm-minos")
    assert "is neither a model nor a run with one" in refused(capsys, Run(str(tmp_path)), out)
    assert "is no complete model of minos_ray" in refused(capsys, Run(str(base)), out)
    assert "exists; remove it" in refused(capsys, run, base)
    assert not out.exists()
