"""What was named before any trial: the comparison that counts, and the seeds."""

import json
import time
from typing import Any

from minos_ray.config import Config
from minos_ray.store import Run
from minos_ray.study.arms import FOLDER

NAME = f"{FOLDER}/named.json"


def named(config: Config, run: Run) -> dict[str, Any]:
    """What stands in study/named.json, which the first call writes; `kept`: whether it still is so."""
    now = {"primary": config.study.primary.model_dump(), "seeds": list(config.study.seeds)}
    if not run.exists(NAME):
        first = {**now, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        run.write_bytes(NAME, json.dumps(first, indent=1).encode())
    first = json.loads(run.read_bytes(NAME))
    return {**first, "kept": all(first[key] == value for key, value in now.items())}
