#!/usr/bin/env bash
# deepspeed 0.19.8: with ZeRO 3 `safe_set_full_fp32_param` and `safe_set_full_optimizer_state`, the documented way to write
# a parameter or a moment of Adam, fail on the last rank when the number of workers does not divide the parameter's
# elements: each rank takes a part of the filled-up size out of the value that is not filled up. `safe_get_full_fp32_param`
# of the same parameter works, and so does setting with ZeRO 1 and 2.
# Seen with torch 2.13.0 on a CPU, two ranks, a vector of 7 elements:
#   zero 2: rank 0 sets 7.0; rank 1 sets 7.0
#   zero 3: rank 0 sets 7.0; rank 1 RuntimeError: start (4) + length (4) exceeds dimension size (7).
# In minos_ray: training/engine.py computes and fills the flat tensors itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 deepspeed==0.19.8
cat >"$folder/ranks.py" <<'PY'
import os
import sys


def in_rank(rank, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed("gloo")
    results = []
    for stage in (2, 3):
        model = torch.nn.Linear(4, 7)
        optimizer = torch.optim.AdamW(model.parameters())
        settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}}
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        bias = engine.module.bias
        assert safe_get_full_fp32_param(bias).numel() == 7
        try:
            safe_set_full_fp32_param(bias, torch.full((7,), 7.0))
            results.append("sets 7.0")
        except RuntimeError as error:
            results.append(f"RuntimeError: {error}")
    everywhere = [None, None]
    dist.all_gather_object(everywhere, results)
    if rank == 0:
        for number, stage in enumerate((2, 3)):
            print(f"zero {stage}: rank 0 {everywhere[0][number]}; rank 1 {everywhere[1][number]}", flush=True)
        as_seen = everywhere[0] == ["sets 7.0"] * 2 and everywhere[1][0] == "sets 7.0"
        with open(f"{folder}/as-seen", "w") as file:
            file.write(str(as_seen and "exceeds dimension size (7)" in everywhere[1][1]))
    dist.barrier()
    os._exit(0)  # at the interpreter's end a thread of gloo may still run


if __name__ == "__main__":
    import torch

    torch.multiprocessing.spawn(in_rank, (sys.argv[1],), nprocs=2)
    sys.exit(open(f"{sys.argv[1]}/as-seen").read() != "True")
PY
DS_ACCELERATOR=cpu "$folder/venv/bin/python" "$folder/ranks.py" "$folder" 2>"$folder/log" || { code=$?; tail -3 "$folder/log"; exit $code; }
