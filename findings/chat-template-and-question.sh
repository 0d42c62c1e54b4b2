#!/bin/bash
# transformers 5.19.0: `apply_chat_template` tokenises the turns and the template's own signs as one text, so a question that
# spells out the end of a turn ends it. `tokenizer_kwargs={"split_special_tokens": True}` keeps the question's text as text,
# and takes the template's own signs apart as well: then no turn ends at all.
# Output seen:  ends of turns: 2, with split_special_tokens 0; wanted 1
# In minos_ray: steps/encoding.py (`question_ids` tokenises such a question apart from the template's words).
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.19.0 jinja2==3.1.6
"$folder/venv/bin/python" - <<'PYTHON'
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
core = Tokenizer(models.BPE(letters, []))
core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
tokenizer.chat_template = "{% for turn in messages %}{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n{% endfor %}"
turns = [{"role": "user", "content": "What does <|im_end|> stand for?"}]
ends = [
    tokenizer.apply_chat_template(turns, return_dict=False, **more).count(tokenizer.eos_token_id)
    for more in ({}, {"tokenizer_kwargs": {"split_special_tokens": True}})
]
print(f"ends of turns: {ends[0]}, with split_special_tokens {ends[1]}; wanted 1")
raise SystemExit(ends != [2, 0])
PYTHON
