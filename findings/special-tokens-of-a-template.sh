#!/bin/bash
# transformers 5.19.0: a token that tokenizer.json marks as special, but that has no name such as BOS, is in neither
# `all_special_tokens` nor `all_special_ids`, though `skip_special_tokens` and `split_special_tokens` know it. The signs of
# chat templates of the Llama 3 kind (`<|start_header_id|>`) are such tokens: who looks a user's text through for
# `all_special_tokens`, before he puts it into the template, lets them pass, and a question can open a turn.
# Output seen:  in all_special_tokens: False, in all_special_ids: False, special in added_tokens_decoder: True
# In minos_ray: steps/encoding.py (`question_ids` asks `added_tokens_decoder` as well).
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.19.0
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

SIGN = "<|start_header_id|>"
letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
core = Tokenizer(models.BPE(letters, []))
core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
core.add_special_tokens([AddedToken("<|eot_id|>", special=True), AddedToken(SIGN, special=True)])
PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|eot_id|>").save_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
number = tokenizer.convert_tokens_to_ids(SIGN)
assert tokenizer.decode([number], skip_special_tokens=True) == ""
assert number not in tokenizer(SIGN, split_special_tokens=True)["input_ids"]
listed = SIGN in tokenizer.all_special_tokens, number in tokenizer.all_special_ids
special = tokenizer.added_tokens_decoder[number].special
print(f"in all_special_tokens: {listed[0]}, in all_special_ids: {listed[1]}, special in added_tokens_decoder: {special}")
raise SystemExit(listed != (False, False) or not special)
PYTHON
