"""`minos search`: candidates of the test problems by search, in a run directory of their own below the run.

`RUN/search/METHOD` is a run: problems, candidates, labels, scores by the verifiers of RUN, evaluation.json and
report.html. A verifier of RUN is trained on the candidates of RUN, so candidates that it guides cannot be among them.
"""

import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.candidates.engine import ENGINE_DIED
from minos_ray.candidates.prompts import prompt_of
from minos_ray.candidates.stage import count_reasons, generator
from minos_ray.cluster.connect import can_grow, join
from minos_ray.cluster.room import bundles
from minos_ray.config.load import Config, resolve
from minos_ray.config.schema import Model, Search
from minos_ray.errors import UserError
from minos_ray.graph.lengths import PROMPT_TOO_LONG, require_room
from minos_ray.graph.specs import FUNCTIONS, fingerprint_of
from minos_ray.graph.state import require_made, require_model
from minos_ray.labels.stage import label_candidates
from minos_ray.observe.failure import reported
from minos_ray.pipeline import open_run
from minos_ray.problems.split import read_problems
from minos_ray.scoring.stage import read_pieces, score_artefacts
from minos_ray.scoring.verifier import kind_of
from minos_ray.search.beams import is_guided
from minos_ray.search.searcher import WITHOUT_SCORE, Searcher
from minos_ray.store.model_files import is_hub_id, load_tokenizer, locate, of_model
from minos_ray.store.run import Artefact, Manifest, Run
from minos_ray.units.run_units import Work, run_units, stored_units

# To be raised when a verifier's scores choose other beams: a search that was stopped must not mix the two.
SELECTION = 2
# Of a run's own PRMs the first guides a search.
PRMS = ("prm-minos", "prm-base")


def search(config: Config, run: Run) -> tuple[Run, Manifest]:
    """Searches candidates as `config.search` says, labels, scores and evaluates them; their run and their manifest.

    A rerun does what is missing. UserError before any work where settings, generator or verifier do not fit.
    """
    with reported(run, "search"):
        settings = resolved(config)
        verifier = verifier_of(config, run, settings)
        check(config, run, settings, verifier)
        target = Run(run.at(f"search/{settings.method}"))
        below = config_below(config, run, target, settings)
        open_run(below)
        problems = target.artefact("problems")
        if begin(problems, {"import": "search", "from": fingerprint_of(run, "problems")}) is None:
            rows = run.artefact("problems").read()
            test = rows.filter(pc.equal(rows["split"], "test"))
            if not test.num_rows:
                raise UserError(f"search: {run.path} has no test problems; a search is for these alone")
            problems.write_part("0", test)
            problems.complete({"test": test.num_rows})
        manifest = candidates(below, run, target, verifier)
        label_candidates(below, target)
        score(below, run, target)
        for stage in ("evaluate", "report"):
            resolve(FUNCTIONS[stage])(below, target)
    return target, manifest


def resolved(config: Config) -> Search:
    """The settings without empty values, but for the verifier."""
    settings = config.search
    temperature = config.sample.temperature if settings.temperature is None else settings.temperature
    aggregation = settings.aggregation or config.score.aggregation
    return settings.model_copy(update={"temperature": temperature, "aggregation": aggregation})


def verifier_of(config: Config, run: Run, settings: Search) -> Model | None:
    """The model that guides the search; None where nothing is selected. UserError when there is none."""
    if not is_guided(settings):
        return None
    if settings.verifier is not None:
        return settings.verifier
    for name in PRMS:
        if run.artefact(f"models/{name}").manifest():
            return Model(model=f"run:models/{name}", trust_remote_code=config.base.trust_remote_code)
    raise UserError(
        f"search.verifier is empty, and {run.path} has no trained PRM; run `minos reward` with prm-base or prm-minos "
        "in reward.verifiers, or name a PRM; search.width=1 samples step by step without one"
    )


def check_search(config: Config, run: Run) -> None:
    """UserError about the section `search` before its run has models; a PRM that the run will train is as if there."""
    settings = resolved(config)
    check_settings(config, settings)
    if settings.verifier is None and any(name in PRMS for name in config.reward.verifiers):
        return
    if verifier := verifier_of(config, run, settings):
        require_made("search.verifier", verifier, config, run)
        if is_hub_id(verifier.model):  # its weights are fetched by the search
            require_model("search.verifier", verifier, run)
        elif not verifier.model.startswith("run:"):
            check_verifier(run, verifier)


def check_settings(config: Config, settings: Search) -> None:
    """UserError about settings that do not fit each other."""
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(config.sample, name):
            raise UserError(f"sample.{name} counts what was generated, and a search starts anew with each step; set 0")
    if config.evaluate.groups > settings.n:
        raise UserError(f"evaluate.groups = {config.evaluate.groups} divides search.n = {settings.n}; set 1")
    if config.resources.sample.pipeline_parallel_size > 1:
        raise UserError("resources.sample.pipeline_parallel_size: a search has its generator on one node; set it to 1")
    if is_guided(settings) and config.resources.score.engine != "transformers":
        raise UserError("resources.score.engine = vllm keeps no keys and values of steps; search needs transformers")


def check(config: Config, run: Run, settings: Search, verifier: Model | None) -> None:
    """UserError about settings that do not fit, the generator, its prompt or the verifier."""
    check_settings(config, settings)
    model = generator(config)
    require_model("generator.model", model, run)
    path = locate(model, run)
    prompt = prompt_of(config.sample)
    require_room("sample.max_tokens", config.sample.max_tokens, "sample", config.resources.sample, path)
    prompt("1 + 1?", load_tokenizer(path, model.trust_remote_code))
    if verifier is not None:
        check_verifier(run, verifier)


def check_verifier(run: Run, verifier: Model) -> None:
    """UserError unless it is there and has a score for every step."""
    require_model("search.verifier", verifier, run)
    from transformers import AutoConfig

    saved = AutoConfig.from_pretrained(locate(verifier, run), trust_remote_code=verifier.trust_remote_code)
    if kind_of(saved, verifier.model) != "prm" and getattr(saved, "orm_positions", "last") != "every_token":
        raise UserError(f"search.verifier = '{verifier.model}' scores whole solutions; a search needs a PRM")


def config_below(config: Config, run: Run, target: Run, settings: Search) -> Config:
    """The config of the search's own run: its candidates are those of the test split, its verifiers those of `run`."""
    verifiers = [name for name in config.reward.verifiers if run.artefact(f"models/{name}").manifest()]
    ns = tuple(n for n in config.evaluate.ns if n <= settings.n)
    changes: dict[str, Any] = {
        "run": target.path,
        "search": settings,
        "sample": config.sample.model_copy(update={"n_test": settings.n, "temperature": settings.temperature}),
        "reward": config.reward.model_copy(update={"verifiers": tuple(verifiers)}),
        "score": config.score.model_copy(update={"judge": None}),
        "evaluate": config.evaluate.model_copy(update={"ns": ns}),
        "label": config.label.model_copy(update={"rollouts": None}),
    }
    return config.model_copy(update=changes)


def begin(artefact: Artefact, inputs: dict[str, Any]) -> Manifest | None:
    """The manifest of an artefact that is complete and made from these inputs; else it is begun, what fits is kept."""
    manifest = artefact.manifest()
    if manifest is not None and manifest.inputs == inputs:
        return manifest
    artefact.begin(inputs)
    return None


def inputs_of(config: Config, run: Run, target: Run, verifier: Model | None) -> dict[str, Any]:
    """What the candidates are made from."""
    models = {"generator": generator(config)} | ({"verifier": verifier} if verifier else {})
    contents = {name: of_model(model) for name, model in models.items()}
    if adapter := models["generator"].adapter:
        contents["adapter"] = of_model(Model(model=adapter))
    chooses = is_guided(config.search) and config.search.method != "particles"
    return {
        "import": "search",
        "search": config.search.model_dump(mode="json"),
        "sample": config.sample.model_dump(mode="json", exclude={"n_train", "n_test", "unit"}),
        "splitter": config.label.splitter,
        "models": {name: model.model_dump(mode="json") for name, model in models.items()},
        "contents": contents,
        **({"selection": SELECTION} if chooses else {}),
        "needs": {
            name: fingerprint_of(target if name == "problems" else run, name)
            for name in ("problems", *(m.model.removeprefix("run:") for m in models.values() if "run:" in m.model))
        },
    }


def candidates(config: Config, run: Run, target: Run, verifier: Model | None) -> Manifest:
    """The candidates of every test problem; a rerun searches only the problems that are missing."""
    artefact, settings = target.artefact("candidates"), config.search
    if done := begin(artefact, inputs_of(config, run, target, verifier)):
        return done
    start = time.monotonic()
    problems = read_problems(target, "test", ["problem_id", "question"])
    names, questions = (problems[name].combine_chunks() for name in ("problem_id", "question"))
    units = pa.table({"unit_id": names, "question": questions})
    missing = units.filter(pa.array(~stored_units(artefact, names)))
    before = units.num_rows - missing.num_rows
    resources = config.resources.sample
    problems_at_once = max(1, resources.max_num_seqs // settings.n)
    work = Work(
        label="search",
        pool="sample",
        worker=Searcher,
        kwargs={
            "run": run.path,
            "model": generator(config),
            "resources": resources,
            "sample": config.sample,
            "settings": settings,
            "verifier": verifier,
            "scoring": config.resources.score,
            "splitter": config.label.splitter,
            "pools": config.resources.search_pools,
            "wait_s": config.resources.wait_s,
        },
        batch_units=problems_at_once,
        least_units=problems_at_once,
        rows=units.num_rows * settings.n,
        rows_before=before * settings.n,
        row_name="candidates",
    )
    if missing.num_rows and verifier and config.resources.search_pools == 2:
        require_both_pools(config)
    run_units(target, "candidates", missing, work, config.resources)
    if absent := int((~stored_units(artefact, names)).sum()):
        raise RuntimeError(f"the candidates of {absent} problems are missing; run again")
    return finish(artefact, units.num_rows, settings, verifier, time.monotonic() - start)


def require_both_pools(config: Config) -> None:
    """UserError unless the cluster has room for every generator and for the PRM that it starts."""
    join(config.resources)
    import ray

    generators, scoring = config.resources.sample, config.resources.score
    verifiers = scoring.model_copy(update={"actors": generators.actors})
    needs, total = [bundles(pool) for pool in (generators, verifiers)], ray.cluster_resources()
    for kind in ("CPU", "GPU"):
        amount, available = sum(need.total.get(kind, 0.0) for need in needs), total.get(kind, 0.0)
        if amount > available and not can_grow():
            raise UserError(
                f"resources.search_pools = 2 takes {needs[0]} for generators, {needs[1]} for PRMs: {amount:g} {kind} "
                f"of {available:g}; lower resources.sample.actors or set resources.search_pools: 1"
            )


def finish(artefact: Artefact, problems: int, settings: Search, verifier: Model | None, seconds: float) -> Manifest:
    """Writes the manifest."""
    reasons, _ = count_reasons(artefact)
    stats = artefact.stats()
    counts = {"candidates": problems * settings.n, "problems": problems}
    counts |= {name: round(stats.get(name, 0)) for name in ("tokens", "dropped_tokens", "verifier_tokens")}
    dropped = {"truncated_at_max_tokens": reasons.get("length", 0)}
    dropped |= {reason: reasons.get(reason, 0) for reason in (PROMPT_TOO_LONG, ENGINE_DIED)}
    dropped[WITHOUT_SCORE] = round(stats.get(WITHOUT_SCORE, 0))
    details = {
        "seconds": round(seconds, 2),
        "method": settings.method,
        "verifier": verifier.model if verifier else None,
        "requests": round(stats.get("requests", 0)),
        "engine_seconds": round(stats.get("seconds", 0.0), 2),
    }
    return artefact.complete(counts, dropped, details)


def score(config: Config, run: Run, target: Run) -> None:
    """The scores of the candidates by the verifiers of `run`, which stay where they are."""
    below = target.path.removeprefix(run.path).strip("/")
    trust = config.base.trust_remote_code
    models, artefacts = {}, []
    for verifier in config.reward.verifiers:
        artefact = run.artefact(f"{below}/scores/{verifier}")
        inputs = {
            "import": "search",
            "model": fingerprint_of(run, f"models/{verifier}"),
            "labels": fingerprint_of(target, "labels"),
            "aggregation": config.score.aggregation,
        }
        if begin(artefact, inputs) is None:
            models[artefact.name] = Model(model=f"run:models/{verifier}", trust_remote_code=trust)
            artefacts.append(artefact)
    if artefacts:
        score_artefacts(config, run, artefacts, models, target, read_pieces(target, "test"))
