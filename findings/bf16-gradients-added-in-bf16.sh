#!/usr/bin/env bash
# deepspeed 0.19.8: with bf16 and without ZeRO, gradients of many micro-batches are added up in bf16, where a sum stops
# growing: 512 gradients of 1 make 256. `data_types.grad_accum_dtype: fp32`, which helps with ZeRO 1 to 3, is refused
# there by a NotImplementedError. torch 2.13.0 has a way that DeepSpeed's optimizer goes along with: `grad_dtype` of a
# parameter, set after `deepspeed.initialize` (whose own first step wants bf16 gradients).
# Seen on a CPU:
#   bf16: 512 gradients of 1 make 256.0
#   grad_accum_dtype fp32: NotImplementedError
#   grad_dtype float32: 512 gradients of 1 make 512.0
# In minos_ray: training/engine.py, which adds them up in fp32, and its `settings`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 deepspeed==0.19.8
DS_ACCELERATOR=cpu RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=0 \
    "$folder/venv/bin/python" - "$folder" <<'PY' 2>"$folder/log" || { code=$?; tail -3 "$folder/log"; exit $code; }
import sys

import torch
import torch.distributed as dist

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
import deepspeed
import deepspeed.ops

deepspeed.ops.__compatible_ops__ = {}  # nothing is to be compiled
SETTINGS = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "managed_gradient_accumulation": False,
    "bf16": {"enabled": True},
}


def total(grad_dtype=None, **more):
    """The gradient of a weight after 512 passes of which each gives 1."""
    model = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=SETTINGS | more)
    if grad_dtype:
        model.weight.grad_dtype = grad_dtype
    for _ in range(512):
        engine.backward(engine(torch.ones(1, 1, dtype=torch.bfloat16)).sum())
    found = model.weight.grad.item()
    engine.step()
    return found


half = total()
print(f"bf16: 512 gradients of 1 make {half}")
try:
    total(data_types={"grad_accum_dtype": "fp32"})
    refused = "taken"
except NotImplementedError as error:
    refused = type(error).__name__
print(f"grad_accum_dtype fp32: {refused}")
exact = total(torch.float32)
print(f"grad_dtype float32: 512 gradients of 1 make {exact}")
sys.exit((half, refused, exact) != (256.0, "NotImplementedError", 512.0))
PY
