#!/usr/bin/env bash
# transformers 5.19.0 computes the sinusoidal positions of GPT-J (and CodeGen) in torch's default precision. In
# `from_config(dtype=bfloat16)` that is bf16: the table is float32 by type, and off by up to 0.36. In
# `from_pretrained(dtype=bfloat16)` it is computed again in float32. So a model that is made and then filled (as for
# ZeRO 3) is another one than the model that is loaded.
# Seen with torch 2.13.0, rotary size 16, 2,048 positions:
#   made: torch.float32, loaded: torch.float32; largest difference 0.36
# In minos_ray: training/models.py `copy_buffers` computes the buffers a second time.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.19.0
"$folder/venv/bin/python" - "$folder" <<'PY' 2>"$folder/log" || { code=$?; tail -3 "$folder/log"; exit $code; }
import sys

import torch
from transformers import AutoModelForCausalLM, GPTJConfig

config = GPTJConfig(vocab_size=64, n_embd=64, n_layer=1, n_head=2, rotary_dim=16, bos_token_id=1, eos_token_id=2)
made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
made.save_pretrained(f"{sys.argv[1]}/model")
loaded = AutoModelForCausalLM.from_pretrained(f"{sys.argv[1]}/model", dtype=torch.bfloat16)
one, two = (model.transformer.h[0].attn.embed_positions for model in (made, loaded))
off = (one - two).abs().max().item()
print(f"made: {one.dtype}, loaded: {two.dtype}; largest difference {off:.2f}")
sys.exit(not (one.dtype == two.dtype == torch.float32 and off > 0.1))
PY
