#!/usr/bin/env bash
# transformers 5.19.0: where config.json says `tie_word_embeddings: true` and the checkpoint stores a `lm_head.weight` that
# differs from the embedding, `from_pretrained` leaves the two apart (a warning), and `save_pretrained` writes both, still
# with `tie_word_embeddings: true`. `from_config` of the same config ties them, and so do engines that follow the config.
# Seen with torch 2.13.0, a Llama of one layer:
#   loaded: tied False; from the config: tied True; saved again: lm_head.weight stored True, tie_word_embeddings True
# In minos_ray: training/base.py `require_equal`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.19.0
"$folder/venv/bin/python" - "$folder" <<'PY' 2>"$folder/log" || { code=$?; tail -3 "$folder/log"; exit $code; }
import json
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

first, again = f"{sys.argv[1]}/first", f"{sys.argv[1]}/again"
sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)).save_pretrained(first)
weights = load_file(f"{first}/model.safetensors")
weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
save_file(weights, f"{first}/model.safetensors", {"format": "pt"})
loaded = LlamaForCausalLM.from_pretrained(first)
made = LlamaForCausalLM(AutoConfig.from_pretrained(first))
loaded.save_pretrained(again)


def tied(model):
    return model.lm_head.weight is model.model.embed_tokens.weight


with safe_open(f"{again}/model.safetensors", "pt") as file:
    stored = "lm_head.weight" in file.keys()
says = json.loads(Path(f"{again}/config.json").read_text())["tie_word_embeddings"]
print(f"loaded: tied {tied(loaded)}; from the config: tied {tied(made)}; saved again: ", end="")
print(f"lm_head.weight stored {stored}, tie_word_embeddings {says}")
sys.exit(not (not tied(loaded) and tied(made) and stored and says))
PY
