"""Folders for the Hugging Face hub: a trained model (its files without paths of this machine, and a full model card);
the artefacts of a run as a dataset (Parquet shards per artefact and split, and a card that says which files are which).

A folder is uploaded with the token in HF_TOKEN; what the hub refuses is one line.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import yaml

from minos_ray import __version__
from minos_ray.config.load import secret
from minos_ray.config.schema import Model
from minos_ray.errors import UserError, WorkStopped
from minos_ray.evaluation.comparison import headline_of
from minos_ray.exports.training_sets import Exported, aside, require_new_folder
from minos_ray.graph.specs import is_made_from
from minos_ray.observe.failure import cause
from minos_ray.problems.split import read_problems
from minos_ray.store.model_files import TOKENIZERS, is_hub_id, locate
from minos_ray.store.run import Manifest, Run

CARD = "README.md"
# What a model is made of; anything else, such as states of an optimizer, is left out.
FILES = (
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json", *TOKENIZERS),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja"),
    *("preprocessor_config.json", "processor_config.json", "LICENSE*", "NOTICE*", "adapter/adapter_*"),
    "*.py",  # of a base with code of its own
)
# Keys of configs that may hold a path of this machine.
PATHS = {"_name_or_path", "name_or_path", "base_model_name_or_path", "tokenizer_file"}
OWN = ("manifest.json", "begun.json", CARD)
# Data sets by their names in runs, on the hub.
ON_HUB = {
    "gsm8k": "openai/gsm8k",
    "math-shepherd": "peiyi9979/Math-Shepherd",
    "processbench": "Qwen/ProcessBench",
}
METHODS = {"best-of-n": "best of {n}", "weighted-vote": "weighted vote of {n}"}
MEASURES = {"accuracy": "accuracy", "f1": "F1", "auc": "AUC"}
Kind = Literal["model", "dataset"]
# What a dataset is made of.
ARTEFACTS = ("problems", "candidates", "labels", "critiques", "inserted")
SCORES = "scores"
SPLITS = ("train", "test")
TAGS = ["mathematical-reasoning", "reward-model", "verifier"]


class Source(NamedTuple):
    """A model: the run that it is in (or the folder around it), the artefact, its name."""

    run: Run
    artefact: str
    name: str


class Base(NamedTuple):
    """The model that training began with: as the manifests name it, and its id on the hub."""

    model: str | None
    hub_id: str | None


def export_hub(
    run: Run,
    out: str,
    *,
    model: str | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    base_model: str | None = None,
    datasets: str | list[str] | None = None,
    upload: str | None = None,
    private: bool = True,
    update: bool = False,
) -> Exported:
    """A model of a run (`model=orm-minos`), or the folder of one, ready for `hf upload`, or uploaded as NAMESPACE/NAME.

    The licence is the base model's where its card names one, else it must be given.
    """
    require_new_folder("export hub", out)
    source = source_of(run, model)
    base = base_of(source, base_model)
    stated = {"license": license, "license_name": license_name, "license_link": license_link}
    terms = terms_of(source, base, stated if license else head_of_base(base, source.run))
    text = model_card(source, base, terms, [datasets] if isinstance(datasets, str) else datasets or [])
    if upload is not None:
        create_repo(upload, "model", private, update)
        text = text.replace('steps = "."', f'steps = "{upload}"', 1)
    sizes = source.run.sizes(source.artefact)
    chosen = [name for name in sizes if any(fnmatch(name, pattern) for pattern in FILES)]
    with aside(out) as (fs, path):
        fs.create_dir(path, recursive=True)
        for name in chosen:
            copy(source, name, fs, path, base)
        with fs.open_output_stream(f"{path}/{CARD}") as stream:
            stream.write(text.encode())
    left_out = len(set(sizes) - {*chosen, *OWN})
    counts = {"files": len(chosen) + 1, "bytes": sum(sizes[name] for name in chosen) + len(text.encode())}
    places = f"{out}, {upload_folder(out, upload, 'model')}" if upload else out
    return Exported(places, counts, {"files that are no part of a model": left_out} if left_out else {})


def source_of(run: Run, model: str | None) -> Source:
    """The model that is meant: the folder itself, or one of a run; UserError when there is none, or a choice."""
    folder, _, name = run.path.rstrip("/").rpartition("/")
    if run.exists("config.json"):
        if model is not None:
            raise UserError(f"export hub: '{run.path}' is a model itself, so model = '{model}' means nothing")
        parent, _, last = folder.rpartition("/")
        source = Source(Run(parent), f"models/{name}", name) if last == "models" else Source(Run(folder), name, name)
    else:
        names = [name for name in run.folders("models") if run.exists(f"models/{name}/config.json")]
        if not names:
            raise UserError(f"export hub: '{run.path}' is neither a model nor a run with one")
        if (model is None and len(names) > 1) or (model is not None and model not in names):
            raise UserError(f"export hub: model = {model or '(not given)'}; '{run.path}' has {', '.join(names)}")
        source = Source(run, f"models/{model or names[0]}", model or names[0])
    if not source.run.exists(f"{source.artefact}/{CARD}") or source.run.artefact(source.artefact).manifest() is None:
        raise UserError(f"export hub: '{source.run.at(source.artefact)}' is no complete model of minos_ray")
    return source


def base_of(source: Source, base_model: str | None) -> Base:
    """What the model was trained from in the end, through other models of the run."""
    name = source.artefact
    while (manifest := source.run.artefact(name).manifest()) is not None:
        start = str(manifest.details.get("start") or "")
        if not start.startswith("run:"):
            return Base(start or None, base_model or (start if is_hub_id(start) else None))
        name = start.removeprefix("run:")
    return Base(None, base_model)


def head_of_base(base: Base, run: Run) -> dict[str, Any]:
    """The head of the base model's card: in its folder, or on the hub (in the cache, without a network); {} if none."""
    from huggingface_hub import ModelCard, errors, hf_hub_download

    with suppress(UserError, OSError, ValueError, yaml.YAMLError):
        if base.model and not is_hub_id(base.model):
            return ModelCard((Path(locate(Model(model=base.model), run)) / CARD).read_text()).data.to_dict()
    network = (errors.HTTPError, errors.HFValidationError, errors.EntryNotFoundError)
    with suppress(*network, OSError, ValueError, yaml.YAMLError):
        if base.hub_id:
            return ModelCard(Path(hf_hub_download(base.hub_id, CARD)).read_text()).data.to_dict()
    return {}


def terms_of(source: Source, base: Base, stated: dict[str, Any]) -> dict[str, str]:
    """The licence for the head of the card; UserError when nobody states one, or not wholly."""
    terms = {}
    for name in ("license", "license_name", "license_link"):
        values = stated.get(name)
        values = values if isinstance(values, list) else [values]
        # Nobody but the user can say which of several is meant.
        if len(values) == 1 and values[0]:
            terms[name] = str(values[0])
    if "license" not in terms:
        whose = (
            f"the card of its base model '{base.hub_id or base.model}' names none" if base.model else "it has no base"
        )
        raise UserError(
            f"export hub: the licence of '{source.name}' is not known ({whose}): give license=apache-2.0, or "
            "license=other license_name=NAME license_link=URL"
        )
    if terms["license"] == "other" and len(terms) < 3:
        raise UserError("export hub: license = other needs license_name and license_link")
    return terms


def model_card(source: Source, base: Base, terms: dict[str, str], datasets: list[str]) -> str:
    """The card that training wrote, with licence, base model, data sets and results of the evaluation in its head."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    text = source.run.read_bytes(f"{source.artefact}/{CARD}").decode()
    if base.model and not is_hub_id(base.model):
        text = text.replace(base.model, base.hub_id or PurePosixPath(base.model).name)
    content = ModelCard(text.replace(source.run.root, PurePosixPath(source.run.root).name))
    head: dict[str, Any] = {**content.data.to_dict(), **terms, "base_model": base.hub_id}
    problems = source.run.artefact("problems")
    names, tested = [], []
    if problems.manifest():
        rows = problems.read(["dataset", "split"])
        names = sorted(set(rows["dataset"].to_pylist()))
        tested = sorted(set(rows.filter(pc.equal(rows["split"], "test"))["dataset"].to_pylist()))
    ids = datasets or [ON_HUB[name] for name in names if name in ON_HUB]
    measures = measured(source)
    results = [
        EvalResult(
            task_type=str(head.get("pipeline_tag")),
            dataset_type=ON_HUB.get(", ".join(tested), "unknown"),
            dataset_name=", ".join(tested) or "unknown",
            dataset_split="test",
            metric_type=row.kind,
            metric_name=row.name,
            metric_value=round(row.value, 4),
        )
        for row in measures
    ]
    evaluated: dict[str, Any] = {"model_name": source.name, "eval_results": results} if results else {}
    content.data = ModelCardData(**head, datasets=ids or None, **evaluated)
    lines = "".join(f"| {row.name} | {row.value:.4f} | {row.interval} |\n" for row in measures)
    table = f"\n## On the test problems\n\n| measure | | 95 % interval |\n|---|---|---|\n{lines}" if lines else ""
    return f"{content}{table}"


class Measure(NamedTuple):
    """A measure of a model: its kind among the hub's metrics, its name, and its 95 % interval as text."""

    kind: str
    name: str
    value: float
    interval: str


def measured(source: Source) -> list[Measure]:
    """What evaluation.json says of the model; nothing where it was not evaluated as it is now."""
    scores = f"scores/{source.name}"
    if not source.artefact.startswith("models/") or not (
        is_made_from(source.run, "evaluation.json", scores) and is_made_from(source.run, scores, source.artefact)
    ):
        return []
    content = json.loads(source.run.read_bytes("evaluation.json"))
    n = headline_of(content["methods"])
    selection = [
        Measure(
            "accuracy",
            METHODS[row["method"]].format(n=n),
            row["accuracy"],
            f"{row['ci_low']:.4f} to {row['ci_high']:.4f}",
        )
        for row in content["methods"]
        if row["method"] in METHODS and (row["verifier"], row["n"]) == (source.name, n)
    ]
    judged = [
        Measure("roc_auc" if key == "auc" else key, f"{label} of its verdicts on solutions", row[key], "")
        for row in content["meta"]
        for key, label in MEASURES.items()
        if (row["verifier"], row["level"]) == (source.name, "outcome") and row[key] is not None
    ]
    return selection + judged


def copy(source: Source, name: str, fs: pafs.FileSystem, folder: str, base: Base) -> None:
    """Copies a file of the model; values in its configs that are paths of this machine become names."""
    start, target = f"{source.run.root}/{source.artefact}/{name}", f"{folder}/{name}"
    fs.create_dir(str(PurePosixPath(target).parent), recursive=True)
    if not name.endswith("config.json"):
        pafs.copy_files(start, target, source_filesystem=source.run.fs, destination_filesystem=fs)
        return

    def with_names(values: dict[str, Any]) -> dict[str, Any]:
        paths = {key: PurePosixPath(values[key]) for key in PATHS & values.keys() if str(values[key]).startswith("/")}
        return {**values, **{key: base.hub_id or path.name for key, path in paths.items() if path.name}}

    values = json.loads(source.run.read_bytes(f"{source.artefact}/{name}"), object_hook=with_names)
    with fs.open_output_stream(target) as stream:
        stream.write(json.dumps(values, indent=2, ensure_ascii=False).encode())


def create_repo(name: str, kind: Kind, private: bool, update: bool) -> None:
    """Makes the repository NAMESPACE/NAME, so that the hub refuses it before anything is written.

    UserError when there is no token or one that may not do that, or when the repository exists and is not to be
    updated; WorkStopped when the hub does not answer.
    """
    if name.count("/") != 1:
        raise UserError(f"export: upload = '{name}' is not of the form NAMESPACE/NAME")
    token = secret("HF_TOKEN", "export: upload")
    from huggingface_hub import HfApi

    with hub_errors(name):
        HfApi(token=token).create_repo(name, repo_type=kind, private=private, exist_ok=update)


def upload_folder(folder: str, name: str, kind: Kind) -> str:
    """Uploads all files of a folder as one commit; returns the address of the repository."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    command = f"hf upload {name} {folder}" + (" --repo-type dataset" if kind == "dataset" else "")
    with hub_errors(name, f"; the folder is complete: {command}"):
        HfApi(token=secret("HF_TOKEN", "export: upload")).upload_folder(
            repo_id=name, folder_path=folder, repo_type=kind, commit_message=f"minos_ray {__version__}"
        )
    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"


@contextmanager
def hub_errors(name: str, remedy: str = "") -> Generator[None]:
    """UserError for what the user can change (offline mode, token, name, card), WorkStopped for a hub in trouble."""
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise UserError("export: upload: HF_HUB_OFFLINE is set; unset it to reach the hub") from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        line = {
            401: "the hub does not accept the token in HF_TOKEN",
            403: f"the token in HF_TOKEN may not write to '{name}'",
            409: f"'{name}' is on the hub already; with update=true it gets a new commit",
        }.get(code, f"the hub refuses '{name}': {(error.server_message or str(error)).splitlines()[0]}")
        kind = WorkStopped if code == 429 or code >= 500 else UserError
        raise kind(f"export: upload: {line} ({code}){remedy}") from error
    except (errors.HTTPError, OSError) as error:
        # The library of Xet raises this one, and no other way is tried then.
        without = "; without Xet: HF_HUB_DISABLE_XET=1" if type(error) is ConnectionError else ""
        raise WorkStopped(f"export: upload: the hub does not answer ({cause(error)}){without}{remedy}") from error
    except ValueError as error:  # of the form of a name, or of the head of the card
        raise UserError(f"export: upload: {' '.join(str(error).split())}{remedy}") from error


class DatasetConfig(NamedTuple):
    """One artefact as a configuration of the dataset: its rows by split."""

    name: str
    manifest: Manifest
    tables: dict[str, pa.Table]


def export_huggingface(
    run: Run,
    out: str,
    *,
    split: Literal["train", "test", "all"] = "all",
    shard_rows: int = 100_000,
    license: str | None = None,
    upload: str | None = None,
    private: bool = True,
    update: bool = False,
) -> Exported:
    """Problems, candidates, labels, critiques, inserted errors and scores, as far as the run has them complete.

    A row goes where its problem is; `shard_rows` is the size of a file. `load_dataset(OUT, "labels")` reads it, and
    with `upload=NAMESPACE/NAME` it is a data set of the hub.
    """
    if shard_rows < 1:
        raise UserError(f"export huggingface: shard_rows = {shard_rows} is less than 1")
    require_new_folder("export huggingface", out)
    names, dropped = present(run), Counter[str]()
    problems = read_problems(run, None if split == "all" else split, ["problem_id", "split"])
    configs = [dataset_config(run, name, problems, dropped) for name in names]
    configs = [part for part in configs if part.tables]
    if not configs:
        raise UserError(f"export huggingface: '{run.path}' has no rows of split {split}")
    if upload is not None:
        create_repo(upload, "dataset", private, update)
    with aside(out) as (fs, path):
        for part in configs:
            fs.create_dir(f"{path}/{config_name(part.name)}", recursive=True)
            for name, table in part.tables.items():
                count = -(-len(table) // shard_rows)
                for number in range(count):
                    shard = f"{path}/{config_name(part.name)}/{name}-{number:05d}-of-{count:05d}.parquet"
                    with fs.open_output_stream(shard) as stream:
                        pq.write_table(table.slice(number * shard_rows, shard_rows), stream, compression="zstd")
        with fs.open_output_stream(f"{path}/README.md") as stream:
            stream.write(dataset_card(configs, license).encode())
    counts = {config_name(part.name): sum(map(len, part.tables.values())) for part in configs}
    places = f"{out}, {upload_folder(out, upload, 'dataset')}" if upload else out
    return Exported(places, counts, {reason: rows for reason, rows in dropped.items() if rows})


def present(run: Run) -> list[str]:
    """The row artefacts of a run that are complete; UserError without problems, which say the split of all others."""
    if run.artefact("problems").manifest() is None:
        raise UserError(f"export huggingface: '{run.path}' has no complete problems")
    info = run.fs.get_file_info(pafs.FileSelector(f"{run.root}/{SCORES}", allow_not_found=True))
    names = [*ARTEFACTS, *sorted(f"{SCORES}/{i.base_name}" for i in info if i.type == pafs.FileType.Directory)]
    return [name for name in names if run.artefact(name).manifest() is not None]


def config_name(name: str) -> str:
    """The configuration of an artefact: `scores-orm-base`."""
    return re.sub(r"\W+", "-", name)


def dataset_config(run: Run, name: str, wanted: pa.Table, dropped: Counter[str]) -> DatasetConfig:
    """One artefact by split; rows of no wanted problem (`problem_id, split`) are counted."""
    artefact = run.artefact(name)
    table, manifest = artefact.read(), artefact.manifest()
    assert manifest is not None
    if "problem_id" in table.column_names:
        problem_ids = table["problem_id"]
    else:  # a critique has the problem of its candidate
        labels = run.artefact("labels").read(["candidate_id", "problem_id"])
        label_rows = pc.index_in(table["candidate_id"], value_set=labels["candidate_id"].combine_chunks())
        problem_ids = labels["problem_id"].take(label_rows)
    of_row = pc.index_in(problem_ids, value_set=wanted["problem_id"].combine_chunks())
    splits = wanted["split"].take(of_row)
    dropped[f"{name}: of no exported problem"] += splits.null_count
    parts = {split: table.filter(pc.fill_null(pc.equal(splits, split), False)) for split in SPLITS}
    return DatasetConfig(name, manifest, {split: part for split, part in parts.items() if len(part)})


def dataset_card(configs: list[DatasetConfig], license: str | None = None) -> str:
    """README.md: the head that `load_dataset` reads, then rows, origin and what was left out when they were made."""
    entries = []
    for part in configs:
        name = config_name(part.name)
        files = [{"split": split, "path": f"{name}/{split}-*.parquet"} for split in part.tables]
        entries.append({"config_name": name, "data_files": files} | ({"default": True} if name == "problems" else {}))
    terms = {"license": license} if license else {}
    values = {**terms, "tags": TAGS, "configs": entries}
    head = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    table = ["| configuration | rows | made by | left out when it was made |", "|---|---|---|---|"]
    for name, manifest, tables in configs:
        sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in tables.items())
        imported = manifest.inputs.get("import")
        form = imported.get("format") if isinstance(imported, dict) else None  # never the path
        origin = f"import {form}" if form else "minos_ray"
        reasons = ", ".join(f"{reason} {rows:,}" for reason, rows in manifest.dropped.items())
        left_out = reasons.replace("|", "\\|").replace("\n", " ") or "nothing"
        table.append(f"| {config_name(name)} | {sizes} | {origin} | {left_out} |")
    text = f"Artefacts of a minos_ray {__version__} run; the columns are described in its docs/run-directory.md."
    return "\n".join([f"---\n{head}---", "# Mathematical verification data", "", text, "", *table, ""])
