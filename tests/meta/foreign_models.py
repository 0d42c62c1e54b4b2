"""Published kinds of reward models in small, made on the spot with the names and files that the published ones have."""

import json
from pathlib import Path
from typing import Any

from tests.tiny import TEXTS, tiny_model

QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def changed(path: str, **values: Any) -> str:
    """The model with other values in its config."""
    file = Path(path) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return path


def two_labels(path: Path) -> str:
    """A token classifier with a label for wrong and one for right, as TRL trains it."""
    import torch
    from transformers import AutoConfig, MistralForTokenClassification

    tiny_model(path, "prm")
    config = AutoConfig.from_pretrained(path)
    config.num_labels = 2
    torch.manual_seed(1)
    MistralForTokenClassification(config).save_pretrained(path)
    return str(path)


def encoder(path: Path) -> str:
    """A BERT with one label: pooled at its first token, with a special token at both ends."""
    import torch
    from tokenizers import processors
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tiny_model(path, "orm")
    tokenizer = AutoTokenizer.from_pretrained(path)
    ends = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=ends
    )
    tokenizer.save_pretrained(path)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=0, num_labels=1, initializer_range=0.3, **size)
    BertForSequenceClassification(config).save_pretrained(path)
    return str(path)


def qwen_tokenizer(path: Path) -> None:
    """Byte-level BPE with the special tokens and the chat form of Qwen2.5-Math-PRM; no BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(TEXTS * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=["<extra_0>"]
    )
    tokenizer.chat_template = QWEN_TEMPLATE
    tokenizer.save_pretrained(path)


def qwen(path: Path) -> str:
    """A Qwen2 with the head of Qwen2.5-Math-PRM, its weights under their published names, and code that nobody runs."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

    qwen_tokenizer(path)
    torch.manual_seed(0)
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    vocabulary = len(AutoTokenizer.from_pretrained(path))
    config = Qwen2Config(
        vocab_size=vocabulary, intermediate_size=128, max_position_embeddings=1024, initializer_range=0.2, **size
    )
    config.architectures, config.dtype = ["Qwen2ForProcessRewardModel"], "float32"
    config.save_pretrained(path)
    weights = {f"model.{name}": value for name, value in Qwen2Model(config).state_dict().items()}
    for layer, rows in (("score.0", 64), ("score.2", 2)):
        weights[f"{layer}.weight"], weights[f"{layer}.bias"] = torch.randn(rows, 64) * 0.3, torch.randn(rows)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    code = {"AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig", "AutoModel": "modeling_qwen2_rm.X"}
    return changed(str(path), auto_map=code)


def make(kind: str, path: Path) -> str:
    """A model by the name that tests give it."""
    path.mkdir(parents=True)
    makers = {"two-labels": two_labels, "encoder": encoder, "qwen": qwen}
    if kind in makers:
        return makers[kind](path)
    small = {"sequence": ("orm", False), "chat": ("orm", True), "tokens": ("prm", False), "shepherd": ("causal", False)}
    saved, chat = small[kind]
    return tiny_model(path, saved, chat=chat)
