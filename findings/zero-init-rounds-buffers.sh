#!/usr/bin/env bash
# deepspeed 0.19.8: inside `deepspeed.zero.Init` with bf16 every floating tensor that torch.arange, tensor, ones, full ...
# make is rounded to bf16, also one that is asked for in float32. transformers 5.19.0 computes rotary frequencies from
# `torch.arange(..., dtype=torch.float)`, so a model made inside (ZeRO 3) has other frequencies than the same model loaded
# by `from_pretrained(dtype=bfloat16)`, which keeps them in float32: training and inference differ.
# Seen with torch 2.13.0 on a CPU, a Llama of head size 32:
#   torch.arange(4, dtype=torch.float32) inside: torch.bfloat16
#   rotary frequencies: torch.bfloat16 inside, torch.float32 loaded; largest relative difference 0.0040
# In minos_ray: training/models.py `copy_buffers` and `fill_buffers`, called by `load_partitioned`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.19.0 deepspeed==0.19.8
DS_ACCELERATOR=cpu RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=0 \
    "$folder/venv/bin/python" - "$folder" <<'PY' 2>"$folder/log" || { code=$?; tail -3 "$folder/log"; exit $code; }
import sys

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
import deepspeed

deepspeed.init_distributed("gloo")
sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
config = LlamaConfig(**sizes)
LlamaForCausalLM(config).save_pretrained(f"{sys.argv[1]}/model")
loaded = LlamaForCausalLM.from_pretrained(f"{sys.argv[1]}/model", dtype=torch.bfloat16)
settings = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}
with deepspeed.zero.Init(config_dict_or_path=settings):
    asked = torch.arange(4, dtype=torch.float32)
    shares = LlamaForCausalLM(config)
inside, outside = shares.model.rotary_emb.inv_freq, loaded.model.rotary_emb.inv_freq
off = ((inside.float() - outside.float()).abs() / outside.float()).max().item()
print(f"torch.arange(4, dtype=torch.float32) inside: {asked.dtype}")
print(f"rotary frequencies: {inside.dtype} inside, {outside.dtype} loaded; largest relative difference {off:.4f}")
sys.exit(not (asked.dtype == inside.dtype == torch.bfloat16 and outside.dtype == torch.float32 and off > 1e-3))
PY
