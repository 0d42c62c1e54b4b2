#!/bin/bash
# transformers 5.19.0, tokenizers of its choice: `split_special_tokens=True` splits only tokens that are marked as special.
# Qwen3's and DeepSeek-R1's <think> are added tokens that are not special: a text that spells one out still becomes that
# one token. And `skip_special_tokens=True`, vLLM's default, takes signs of thinking out of a text where they are special
# (Magistral's [THINK]): what was thought can then not be told from the answer.
# Output seen:  <think> 1 1 kept | [THINK] 1 7 lost | <|im_end|> 1 10 lost   (tokens; split; decoded without special tokens)
# In minos_ray: steps/encoding.py (`plain_ids`), candidates/prompts.py.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.19.0
"$folder/venv/bin/python" - <<'PYTHON'
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
core = Tokenizer(models.BPE(letters, []))
core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
tokenizer.add_tokens([AddedToken("[THINK]", special=True, normalized=False)], special_tokens=True)
seen = []
for text in ("<think>", "[THINK]", "<|im_end|>"):
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    split = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    kept = "kept" if tokenizer.decode(whole, skip_special_tokens=True) == text else "lost"
    seen.append(f"{text} {len(whole)} {len(split)} {kept}")
print(" | ".join(seen))
raise SystemExit(seen != ["<think> 1 1 kept", "[THINK] 1 7 lost", "<|im_end|> 1 10 lost"])
PYTHON
