"""What was named before any trial: the comparison that counts, the seeds, the setting."""

import json
import time
from typing import Any

from minos_ray.config.load import Config, leaves
from minos_ray.graph.specs import NEUTRAL, NOT_STUDIED
from minos_ray.store.run import Run
from minos_ray.study.arms import FOLDER

NAME = f"{FOLDER}/named.json"
# Each trial sets these itself, or they decide nothing.
IDLE = {
    "seed",
    "sft.seed",
    "reward.seed",
    "score.judge",
    *(f"{part}.{key}" for part in NEUTRAL for key in NEUTRAL[part]),
}


def named(config: Config, run: Run) -> dict[str, Any]:
    """What stands in study/named.json, which the first call writes; `changed`: what is not so any more."""
    values = config.model_dump(mode="json")
    setting = {name: section for name, section in values.items() if name not in (*NOT_STUDIED, "study")}
    now = {"primary": values["study"]["primary"], "seeds": values["study"]["seeds"], "setting": setting}
    if not run.exists(NAME):
        first = {**now, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        run.write_bytes(NAME, json.dumps(first, indent=1).encode())
    first = json.loads(run.read_bytes(NAME))
    before, present = (dict(leaves({key: found[key] for key in now})) for found in (first, now))
    changed = [key for key in before.keys() | present.keys() if before.get(key) != present.get(key)]
    return {key: first[key] for key in ("primary", "seeds", "time")} | {"changed": sorted(filter(decides, changed))}


def decides(key: str) -> bool:
    """Whether a key of what was named says anything of what the trials do."""
    name = key.removeprefix("setting.")
    return not any(name == idle or name.startswith(f"{idle}.") for idle in IDLE)
