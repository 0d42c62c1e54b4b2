"""The map of the pipeline: which stage makes which artefact, and what goes into its fingerprint."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from minos_ray import __version__
from minos_ray.config.load import Config, with_names_of_today
from minos_ray.config.schema import Model
from minos_ray.config.training import BINARY
from minos_ray.graph.lengths import outgrown
from minos_ray.store.model_files import of_model, of_path
from minos_ray.store.run import Artefact, Manifest, Run, fingerprint

# Raise a number when the text or layout it names changes: artefacts made with the old one become stale.
VERSIONS = {
    "labels": 2,
    "step_encoding": 2,
    "stage_1": 1,
    "critique_prompt": 2,
    "error_prompt": 1,
    "inserted": 1,
    "judge": 2,
    "evaluation": 3,
}
CHAT_ENCODING = 1  # likewise, of runs whose base.encoding is chat
# Keys that say how far to go or where a secret lies, not what is made: another value makes nothing stale.
PRICES = {"usd_per_million_input", "usd_per_million_output"}
# Where an endpoint lies and how it is spoken to: another server of the same model writes the same.
ADDRESS = {"api_key_env", "base_url", "token_limit", "extra_headers"}
NEUTRAL: dict[str, set[str]] = {"critique": {"max_usd", "mode", *ADDRESS, *PRICES}, "reward": {"verifiers"}}


# Keys that came later: a section without them is the same as one with these values.
UNSET = {
    "sample": {
        **{"min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0},
        **{"stop_token_ids": [], "system": None, "chat_template_kwargs": {}},
    },
    "base": {"encoding": {"name": "lines", "system": None, "chat_template_kwargs": {}}},
    "critique": {"top_p": None, "reasoning_effort": None, "extra_body": {}},
    "reward": {"loss": BINARY, "group_rows": 8, "calibration": "none"},
    "study": {"labels": []},
    "refine": {"epochs": None},
}
UNSET_JUDGE = {"soft": False}
# Keys of `resources.*.extra` that change how fast vLLM is, not what it says; any other is in the fingerprint.
FOR_SPEED = {
    *("max_model_len", "max_num_batched_tokens", "max_num_seqs", "gpu_memory_utilization", "kv_cache_memory_bytes"),
    *("enable_chunked_prefill", "enable_prefix_caching", "enforce_eager", "compilation_config", "block_size"),
    *("swap_space", "cpu_offload_gb", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
    *("distributed_executor_backend", "disable_custom_all_reduce", "disable_log_stats", "max_parallel_loading_workers"),
    *("download_dir", "tokenizer_mode", "async_scheduling", "num_gpu_blocks_override", "enable_expert_parallel"),
}


# Stages with trainings of their own, which `minos run` leaves alone.
APART = ("sweep", "study", "teach")
# What most artefacts are made from.
DATA = ("problems", "candidates", "labels")
# What no trial of a study depends on.
NOT_STUDIED = ("run", "report", "resources", "observe", "meta", "search", "sweep", "error_analysis", "dpo", "teach")
# What decides which problems stage 2 holds out: stage 1 must not learn from them either.
HELD_OUT_BY = ("reward.eval_rows", "reward.wrong_share", "reward.seed", "reward.consensus")
# What is sampled in a round of the critic, and what is trained on of it; how many rounds are made is no part of either.
SAMPLED_BY = ("refine.candidates", "refine.samples", "refine.temperature", "refine.max_tokens", "seed")
REFINED_BY = ("refine.keep", "refine.start", "refine.method", "refine.epochs")
HELD_OUT = ("refine.held_out", "refine.max_tokens", "seed")
# Another policy or second opinion makes no completions again.
ROLLOUTS_BY = ("label.rollouts", "label.grader", "label.splitter", "label.timeout_s", "sample", "generator", "seed")


@dataclass(frozen=True)
class Spec:
    """One artefact: its stage, and what it is made from: sections of the config, other artefacts, versions.

    Of a section whose keys are named (`score.judge`) no other key matters. `engines` are the pools of `resources`
    whose engines write it.
    """

    artefact: str
    stage: str
    sections: tuple[str, ...]
    needs: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()  # shown when there, not waited for
    engines: tuple[str, ...] = ()
    round: int = 0  # of the critic: refine.json counts the rounds that were made, and those after them are not needed


# stage -> the function that does it
FUNCTIONS = {
    "pretrain": "minos_ray.training.pretrain:pretrain",
    "problems": "minos_ray.problems.loaders:problems",
    "sample": "minos_ray.candidates.stage:sample",
    "label": "minos_ray.labels.stage:label",
    "critique": "minos_ray.critiques.stage:critique",
    "sft": "minos_ray.training.sft:sft",
    "refine": "minos_ray.rounds.refine:refine",
    "reward": "minos_ray.training.reward:reward",
    "score": "minos_ray.scoring.stage:score",
    "evaluate": "minos_ray.evaluation.stage:evaluate",
    "sweep": "minos_ray.study.stage:sweep",
    "study": "minos_ray.study.stage:study",
    "teach": "minos_ray.rounds.teach:teach",
    "report": "minos_ray.report.stage:report",
}
# Stages whose trials do other stages' work.
STAGES_WITHIN = {"sweep": ("sft", "reward"), "study": tuple(FUNCTIONS), "teach": ("sample", "label")}


def specs(config: Config) -> list[Spec]:
    """Every artefact of a run of this config, each after what it needs."""
    base = ("models/base",) if config.base.model == "run:models/base" else ()
    generator = ("models/base",) if config.generator and config.generator.model == "run:models/base" else ()
    judged = (
        ["scores/critic", *(["scores/critic-soft"] if config.score.judge.soft else [])] if config.score.judge else []
    )
    scores = [f"scores/{name}" for name in config.reward.verifiers] + judged
    planned = []
    if config.pretrain is not None and (base or generator or completer_of_run(config) == "models/base"):
        planned.append(Spec("models/base", "pretrain", ("pretrain",), config.pretrain.needs))
    planned += [
        Spec("problems", "problems", ("problems", "seed")),
        Spec("candidates", "sample", ("sample", "generator", "seed"), ("problems", *generator), engines=("sample",)),
        *label_specs(config, generator),
        Spec("critiques", "critique", ("critique", "seed"), DATA, ("critique_prompt",)),
    ]
    if config.error_analysis.count:
        needs = (*DATA, *(("inserted",) if config.inserted.count else ()))
        sections = ("error_analysis", "critique", "seed")
        planned.append(Spec("error_types", "critique", sections, needs, ("error_prompt",)))
    if config.score.judge is not None or any(name.endswith("minos") for name in config.reward.verifiers):
        # Stage 1 learns from bought critiques, inserted errors or both; consensus decides what stage 2 holds out.
        bought = ("critiques",) if config.sft.source != "inserted" or config.reward.consensus else ()
        inserted = ("inserted",) if config.inserted.count and config.sft.source in ("inserted", "both") else ()
        needs = (*DATA, *bought, *inserted, *base)
        planned.append(Spec("models/critic", "sft", ("sft", "base", *HELD_OUT_BY), needs, ("step_encoding",)))
        planned += round_specs(config, needs)
    for name in config.reward.verifiers:
        # A verifier starts from the critic or from the base; nothing else differs.
        start = (critic_needed(config),) if name.endswith("minos") else base
        critiques = ("critiques",) if config.reward.consensus and name.startswith("prm") else ()
        needs = (*DATA, *critiques, *start)
        planned.append(Spec(f"models/{name}", "reward", ("reward", "base"), needs, ("step_encoding",)))
    for name in scores:
        if name == "scores/critic-soft":  # columns of what the judge wrote
            planned.append(Spec(name, "score", ("score.judge",), ("scores/critic",), ("judge",)))
            continue
        section, pool = ("score.judge", "judge") if name == "scores/critic" else ("score.aggregation", "score")
        versions = ("judge", "step_encoding") if name == "scores/critic" else ("step_encoding",)
        model = critic_needed(config) if name == "scores/critic" else name.replace("scores/", "models/")
        planned.append(Spec(name, "score", (section,), (*DATA, model), versions, engines=(pool,)))
    sorted_errors = ("error_types",) if config.error_analysis.count else ()
    needs = ("problems", "labels", *scores)
    planned.append(Spec("evaluation.json", "evaluate", ("evaluate", "score"), needs, ("evaluation",), sorted_errors))
    sections = ("sweep", "sft", "reward", "base", "score", "evaluate")
    needs, versions = (*DATA, "critiques", *base), ("step_encoding", "stage_1", "evaluation")
    planned.append(Spec("sweep/results.parquet", "sweep", sections, needs, versions, engines=("score",)))
    if config.study.seeds:
        changes = (key for arm in config.study.ablations.values() for key in arm)
        rounds = config.refine.rounds or any(key.startswith("refine.") for key in changes)
        off = set(NOT_STUDIED) - {"dpo"} if rounds else {*NOT_STUDIED, "refine"}
        sections = tuple(name for name in type(config).model_fields if name not in off)
        engines = ("sample", "score", *(("judge",) if rounds else ()))
        planned.append(Spec("study/results.parquet", "study", sections, (), tuple(VERSIONS), engines=engines))
    taught: tuple[str, ...] = ()
    if config.teach.rounds:
        sections = ("teach", "generator", "sample", "label", "seed", "score.aggregation")
        judge = () if config.teach.judge == "gold" else (f"models/{config.teach.judge}",)
        taught, needs, engines = ("teach/results.parquet",), ("problems", *generator, *judge), ("sample", "score")
        planned.append(Spec(taught[0], "teach", sections, needs, ("labels", "step_encoding"), engines=engines))
    optional = ("sweep/results.parquet", *taught, "critiques", "scores/critic")
    planned.append(Spec("report.html", "report", ("report",), ("evaluation.json",), optional=optional))
    return planned


def critic_name(number: int) -> str:
    """The critic of a round: `critic` of stage 1, `critic-1` of the first one."""
    return f"critic-{number}" if number else "critic"


def critic_needed(config: Config) -> str:
    """The artefact that stage 2 and the judge wait for: a critic, or what says which round's is the best."""
    section = config.refine
    if not section.rounds:
        return "models/critic"
    return "refine.json" if section.start_round is None else f"models/{critic_name(section.start_round)}"


def critic_chosen(config: Config, run: Run) -> str:
    """The artefact of the critic that stage 2 starts from and that judges; refine.json must be complete if it decides.

    A name of the artefact, such as `models/critic-1`.
    """
    needed = critic_needed(config)
    return f"models/{critic_name(json.loads(run.read_bytes(needed))['chosen'])}" if needed == "refine.json" else needed


def round_specs(config: Config, needs: tuple[str, ...]) -> Iterator[Spec]:
    """Rounds of the critic, whose stage 1 `needs` these: each samples with the last critic, trains and measures one."""
    dpo = config.refine.method == "dpo"
    made_by = ("sft", "base", *HELD_OUT_BY, *(("dpo",) if dpo else ()))
    versions, sampled = ("judge", "step_encoding"), []
    for number in range(config.refine.rounds + 1 if config.refine.rounds else 0):
        name = critic_name(number)
        if number:
            before = critic_name(number - 1)
            sampled.append(f"sampled/{before}")
            sections = (*SAMPLED_BY, *HELD_OUT_BY)
            origins = (*needs, f"models/{before}")
            yield Spec(sampled[-1], "refine", sections, origins, versions, (), ("judge",), number)
            start = (f"models/{before}",) if config.refine.start == "critic" or dpo else ()
            yield Spec(
                f"models/{name}",
                "refine",
                (*REFINED_BY, *made_by),
                (*needs, *start, *sampled),
                ("step_encoding",),
                round=number,
            )
        judged, sections = (*DATA, f"models/{name}"), (*HELD_OUT, *HELD_OUT_BY)
        yield Spec(f"held-out/{name}", "refine", sections, judged, versions, (), ("judge",), number)
    if config.refine.rounds:
        keys = tuple(f"refine.{key}" for key in type(config.refine).model_fields if key != "start_round")
        sections = (*keys, *made_by, "evaluate")
        yield Spec("refine.json", "refine", sections, (*needs, "models/critic"), versions, engines=("judge",))


def label_specs(config: Config, generator: tuple[str, ...]) -> list[Spec]:
    """Labels, after the rollouts that they may come from, and the errors inserted into right solutions."""
    needs, planned = ("problems", "candidates"), []
    if config.label.rollouts:
        completer = completer_of_run(config)
        model = (completer,) if completer else () if config.label.rollouts.completer else generator
        planned.append(Spec("rollouts", "label", ROLLOUTS_BY, (*needs, *model), ("labels",), engines=("sample",)))
        needs = (*needs, "rollouts")
    planned.append(Spec("labels", "label", ("label",), needs, ("labels",)))
    if config.inserted.count:
        needs = ("problems", "labels") if config.inserted.source == "candidates" else ("problems",)
        planned.append(Spec("inserted", "label", ("inserted", "seed"), needs, ("inserted",)))
    return planned


def completer_of_run(config: Config) -> str | None:
    """The artefact that makes the completions of rollouts, None where that is another model or the generator."""
    completer = config.label.rollouts.completer if config.label.rollouts else None
    return completer.model.removeprefix("run:") if completer and completer.model.startswith("run:") else None


def spec(config: Config, artefact: str) -> Spec:
    """The spec of one artefact of this config."""
    return next(s for s in specs(config) if s.artefact == artefact)


def inputs(config: Config, run: Run, spec: Spec) -> dict[str, Any]:
    """What the fingerprint is made of: config sections, fingerprints of the needed artefacts, versions."""
    chat = config.base.encoding.name == "chat" and "step_encoding" in spec.versions
    if_any = {"engines": engine_settings(config, spec.engines), "contents": contents(config, spec)}
    return {
        "config": sections_of(config, spec),
        **{name: values for name, values in if_any.items() if values},
        "needs": {name: fingerprint_of(run, name) for name in spec.needs + spec.optional},
        "versions": {name: VERSIONS[name] for name in spec.versions}
        | ({"chat_encoding": CHAT_ENCODING} if chat else {}),
        "package": __version__,
    }


def sections_of(config: Config, spec: Spec) -> dict[str, Any]:
    """The sections that an artefact is made from, or the keys of them that matter."""
    dump, sections = config.model_dump(mode="json"), {}
    for dotted in spec.sections:
        name, _, key = dotted.partition(".")
        values = without_neutral(name, dump[name])
        if key:
            sections.setdefault(name, {}).update({key: values[key]} if key in values else {})
        else:
            sections[name] = values
    return sections


def without_neutral(name: str, section: Any) -> Any:
    """A section of the config without its neutral keys, and without later ones that are not set."""
    if name == "score" and section.get("judge"):
        judge = {key: value for key, value in section["judge"].items() if UNSET_JUDGE.get(key, ...) != value}
        return {**section, "judge": judge}
    if name not in NEUTRAL and name not in UNSET:
        return section
    if name == "critique" and section.get("base_url") == "offline":  # another critic, whatever the model is called
        section = {**section, "model": "offline"}
    if name == "reward" and section.get("loss", BINARY) == BINARY:  # it compares no rows, so makes no groups
        section = {**section, "group_rows": UNSET["reward"]["group_rows"]}
    unset, neutral = UNSET.get(name, {}), NEUTRAL.get(name, ())
    return {k: v for k, v in section.items() if k not in neutral and not (k in unset and v == unset[k])}


def contents(config: Config, spec: Spec) -> dict[str, str]:
    """Digests of the files and of the models' directories that an artefact is made from, by their keys."""
    digests: dict[str, str | None] = {}
    if "problems" in spec.sections and config.problems:
        for split in ("train", "test"):
            if path := getattr(config.problems, split).path:
                digests[f"problems.{split}.path"] = of_path(path)
    completer = config.label.rollouts.completer if config.label.rollouts else None
    models = {"generator": config.generator, "base": config.base}
    digests |= {f"{name}.model": of_model(model) for name, model in models.items() if name in spec.sections and model}
    if "label.rollouts" in spec.sections and completer:
        digests["label.rollouts.completer"] = of_model(completer)
        models["label.rollouts.completer"] = completer
    for name, model in models.items():
        if model and model.adapter and (name in spec.sections or model is completer):
            digests[f"{name}.adapter"] = of_model(Model(model=model.adapter))
    return {key: digest for key, digest in digests.items() if digest}


def comparable(current: dict[str, Any], recorded: dict[str, Any] | None) -> dict[str, Any]:
    """The inputs of now, as far as they can be held against recorded ones.

    Contents that were not recorded then, or that cannot be read now, are no change.
    """
    now, then = current.get("contents", {}), (recorded or {}).get("contents", {})
    if recorded is None or now == then:
        return current
    both = {key: now.get(key, digest) for key, digest in then.items()}
    others = {name: value for name, value in current.items() if name != "contents"}
    return {**others, "contents": both} if both else others


def engine_settings(config: Config, pools: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What `resources.*.extra` sets in engines that changes what they write, as quantization does."""
    extras = {pool: getattr(config.resources, pool).extra for pool in pools}
    if config.resources.score.engine != "vllm":
        extras.pop("score", None)
    settings = {pool: {k: v for k, v in extra.items() if k not in FOR_SPEED} for pool, extra in extras.items()}
    return {pool: extra for pool, extra in settings.items() if extra}


def fingerprint_of(run: Run, artefact: str) -> str | None:
    """What those that need a complete artefact know it by; None when it is not complete.

    Its fingerprint, and a word where rows were drawn again after others may have been made from the old ones.
    """
    manifest = run.artefact(artefact).manifest()
    if manifest is None:
        return None
    again = manifest.details.get("drawn_again")
    return f"{manifest.fingerprint} {again}" if again else manifest.fingerprint


def is_made_from(run: Run, artefact: str, needed: str) -> bool:
    """Whether a complete artefact was made from another as that is now; of what was imported nobody knows: True."""
    manifest = run.artefact(artefact).manifest()
    if manifest is None:
        return False
    needs = manifest.inputs.get("needs", {})
    return needed not in needs or needs[needed] == fingerprint_of(run, needed)


def begin(config: Config, run: Run, artefact: str) -> Artefact:
    """The artefact, ready to be written or resumed; what is stale of it is removed. Stages ask `fresh` before."""
    target = run.artefact(artefact)
    recorded = target.begun_inputs()
    current = comparable(inputs(config, run, spec(config, artefact)), recorded)
    # An earlier version may have begun it under names of its own: that goes on.
    same = recorded is not None and fingerprint(significant(recorded)) == fingerprint(current)
    target.begin(recorded if same else current)
    return target


def fresh(config: Config, run: Run, artefact: str) -> Manifest | None:
    """The manifest when the artefact is complete and made from what it would be made from now."""
    manifest = run.artefact(artefact).manifest()
    current = inputs(config, run, spec(config, artefact))
    done = manifest is not None and is_fresh(manifest, current) and not outgrown(config, manifest)
    return manifest if done else None


def is_fresh(manifest: Manifest, current: dict[str, Any]) -> bool:
    """Imported artefacts are fresh as long as they are there; others while what matters of their inputs stays."""
    recorded = manifest.inputs
    return "import" in recorded or fingerprint(comparable(current, recorded)) in (
        manifest.fingerprint,
        fingerprint(significant(recorded)),
    )


def significant(recorded: dict[str, Any]) -> dict[str, Any]:
    """What matters of the inputs that an artefact was made from; an earlier version may have recorded more."""
    config = recorded.get("config")
    if not isinstance(config, dict):
        return recorded
    sections = {name: without_neutral(name, section) for name, section in config.items()}
    return {**recorded, "config": with_names_of_today(sections)}
