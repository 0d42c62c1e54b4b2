#!/usr/bin/env bash
# Ray Data's guard against hangs (`execution_no_progress_timeout_s`) sees progress only when a task ends or yields a
# block: an actor that is at work and stores results elsewhere counts as hanging, however much it stores.
# Seen with ray 2.60.0, one actor, one task of 24 s that writes a file each second, a limit of 10 s:
#   ExecutionTimeoutError after about 10 s of work; files written by then: more than 5
#   with the limit at -1: 24 files, no error
# In minos_ray: cluster/connect.py `quiet_data` sets -1, units/run_units.py `progress_tally` counts what is stored instead.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check "ray[data]==2.60.0"
RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 "$folder/venv/bin/python" - "$folder" <<'PY'
import pathlib
import sys
import time

import ray
from ray.data import ActorPoolStrategy, DataContext

folder = pathlib.Path(sys.argv[1])
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
DataContext.get_current().enable_progress_bars = False


class Stores:
    def __call__(self, batch):
        for second in range(24):
            (folder / f"{batch['name'][0]}-{second}").touch()
            time.sleep(1)
        return batch


def run(name, limit):
    DataContext.get_current().execution_no_progress_timeout_s = limit
    rows = ray.data.from_items([{"name": name}])
    error = None
    try:
        rows.map_batches(Stores, compute=ActorPoolStrategy(size=1), batch_size=1).take_all()
    except Exception as raised:
        error = type(raised).__name__
    files = len(list(folder.glob(f"{name}-*")))
    print(f"limit {limit}: {error or 'no error'}, {files} files")
    return error, files


limited, free = run("limited", 10), run("free", -1)
ray.shutdown()
sys.exit(not (limited[0] == "ExecutionTimeoutError" and limited[1] > 5 and free == (None, 24)))
PY
