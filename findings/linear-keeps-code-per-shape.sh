#!/bin/bash
# torch 2.13.0 on x86 CPUs: a bfloat16 `nn.Linear` (and any layer that oneDNN computes, float32 ones with reordered weights
# too) keeps over half a megabyte for every number of rows that it meets. A server whose batches differ in length grows by
# hundreds of megabytes. ONEDNN_PRIMITIVE_CACHE_CAPACITY, the documented limit, halves that only; ideep, between torch and
# oneDNN, has a second cache (LRU_CACHE_CAPACITY).
# Output seen (MiB for 600 numbers of rows):  default 409 | ONEDNN_PRIMITIVE_CACHE_CAPACITY=16 257 | both 16 16
# In minos_ray: training/vocabulary.py (`ROWS`: rows are padded to multiples of 64).
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 psutil==7.2.2 numpy
cat > "$folder/grow.py" <<'PYTHON'
import psutil
import torch

torch.set_num_threads(1)
linear = torch.nn.Linear(256, 256).bfloat16()
with torch.inference_mode():
    linear(torch.randn(100, 256).bfloat16())
    before = psutil.Process().memory_full_info().uss
    for rows in range(201, 801):
        linear(torch.randn(rows, 256).bfloat16())
    print(round((psutil.Process().memory_full_info().uss - before) / 2**20))
PYTHON
run() { env "$@" "$folder/venv/bin/python" "$folder/grow.py"; }
plain=$(run A=1) one=$(run ONEDNN_PRIMITIVE_CACHE_CAPACITY=16)
both=$(run ONEDNN_PRIMITIVE_CACHE_CAPACITY=16 LRU_CACHE_CAPACITY=16)
echo "default $plain | ONEDNN_PRIMITIVE_CACHE_CAPACITY=16 $one | both 16 $both"
[ "$plain" -gt 200 ] && [ "$one" -gt 100 ] && [ "$both" -lt 60 ]
