#!/bin/bash
# transformers 5.19.0: `from_pretrained` turns the tying of weights off for the whole process while it loads, and puts back
# what it saw before. Two threads that load at once put back the other's empty function: from then on no model of the
# process has tied embeddings, whether it is made from a config or loaded, and a checkpoint without `lm_head` gets a random
# one without a warning of what went wrong.
# Output seen:  tied after one thread: True | after two threads: False
# In minos_ray: store/model_files.py (`LOADING`, a lock around everything that makes or loads a model outside of workers).
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch transformers==5.19.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder/model" <<'PYTHON'
import sys
import threading

from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
config = LlamaConfig(**sizes, tie_word_embeddings=True)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])


def tied() -> bool:
    model = LlamaForCausalLM(config)
    return model.lm_head.weight is model.model.embed_tokens.weight


def load() -> None:
    for _ in range(10):
        LlamaForCausalLM.from_pretrained(sys.argv[1])


load()
alone = tied()
for _ in range(20):
    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not tied():
        break
together = tied()
print(f"tied after one thread: {alone} | after two threads: {together}")
raise SystemExit(not alone or together)
PYTHON
