"""A tiny random language model of every causal family of transformers that can be made from its config alone."""

from typing import Any

import torch

HIDDEN, WORDS = 32, 64
# Fields that configs of transformers share; a config gets those that it has.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"), WORDS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_size", "word_embed_proj_dim"), HIDDEN),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_inner", "dff", "ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim",), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_global_key_value_heads", "index_n_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"), 64),
    **dict.fromkeys(("head_dim", "global_head_dim", "d_head", "qk_nope_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("v_head_dim", "linear_key_head_dim", "linear_value_head_dim", "chunk_size"), 8),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_head_dim", "index_head_dim", "moe_intermediate_size"), 16),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "n_groups"), 1),
    **dict.fromkeys(("mamba_n_groups", "encoder_layers"), 1),
    **dict.fromkeys(("linear_num_key_heads", "moe_k", "moe_topk", "mamba_expand"), 2),
    "linear_num_value_heads": 4,
    "max_source_positions": 64,
    "mamba_d_ssm": 64,
    "hidden_size_per_layer_input": 8,
    "rotary_dim": 4,
    "index_topk": 64,
    "sliding_window": 4,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FULL, WINDOW, LINEAR = "full_attention", "sliding_attention", "linear_attention"
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
INDEXER = {f"indexer_{name}": size for name, size in (("n_heads", 2), ("kv_heads", 1), ("head_dim", 8), ("budget", 64))}
EXPERIMENT = {"hc_lowrank": 8, "layer_types": [LINEAR, FULL], **INDEXER, "indexer_compress_ratio": 2}
# What several families must have besides: layers of both kinds, scales that are not 1, a causal mask.
GROUPS: list[tuple[str, dict[str, Any]]] = [
    ("bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert", {"is_decoder": True}),
    ("roberta roberta-prelayernorm roformer xlm-roberta xlm-roberta-xl", {"is_decoder": True}),
    ("granite granitemoe granite_swa granitemoe_swa", {"logits_scaling": 8.0}),
    ("granitemoehybrid granitemoeshared", {"logits_scaling": 8.0, "shared_intermediate_size": 32}),
    ("axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa youtu", {"num_key_value_heads": 4}),
    ("lfm2 lfm2_moe", {"layer_types": ["conv", FULL]}),
    ("granitemoehybrid qwen3_5_text qwen3_5_moe_text qwen3_next olmo_hybrid minimax", {"layer_types": [LINEAR, FULL]}),
    ("qwen3_5 qwen3_5_moe", {"text_config": {"layer_types": [LINEAR, FULL]}}),
    ("cohere_compass_text gemma2 gemma3_text gemma3n_text gpt_oss exaone4 olmo3", {"layer_types": [WINDOW, FULL]}),
    ("zamba zamba2", {"attention_hidden_size": 64, "attention_head_dim": 16}),
]
# And one family.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        "encoder_config": {"hidden_size_global": 32},
        "decoder_config": {"hidden_size_global": 32},
    },
    "cohere_compass_text": {
        "logit_scale": 0.25,
        "rope_parameters": {kind: {**ROPE, "mrope_section": [2, 1, 1]} for kind in (WINDOW, FULL)},
    },
    "cpmant": {"dim_ff": 48, "dim_head": 8},
    "deepseek_v4": {"o_lora_rank": 16, "o_groups": 2},
    "falcon_h1": {"lm_head_multiplier": 0.5},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "hyperclovax": {"logits_scaling": 0.5},
    "inkling_text": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "rel_extent": 64},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "kimi_linear": {
        "num_experts_per_token": 2,
        "num_key_value_heads": 4,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "layer_types": [LINEAR, FULL],
    },
    "llama4_text": {"attention_chunk_size": 4, "intermediate_size_mlp": 48},
    "longcat_flash": {
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 16,
        "zero_expert_num": 2,
        "num_key_value_heads": 4,
    },
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "minicpm3": {"num_key_value_heads": 4, "dim_model_base": 16},
    "minimax_m3_vl_text": {"shared_intermediate_size": 32, "dense_intermediate_size": 32, "index_head_dim": 8},
    "nemotron_h": {"moe_shared_expert_intermediate_size": 16, "layers_block_type": [LINEAR, FULL]},
    "qwen4_exp": {"text_config": EXPERIMENT},
    "qwen4_exp_text": EXPERIMENT,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "attention_window_size": 4, "lru_width": 32},
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
    "roc_bert": {"is_decoder": True, "pronunciation_vocab_size": 64, "shape_vocab_size": 64, "shape_embed_dim": 32},
    "xlm": {"causal": True, "use_lang_emb": False},
    "xlnet": {"attn_type": "uni"},
    "xmod": {"is_decoder": True, "languages": ["en"], "default_language": "en"},
    "zamba": {"num_hidden_layers": 3, "layer_types": ["hybrid", LINEAR, "hybrid"], "mamba_dt_rank": 4},
    "zamba2": {"layers_block_type": [LINEAR, "hybrid"], "num_mem_blocks": 1},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


def tiny(family: str, **more: Any) -> Any:
    """The config of a tiny model."""
    from transformers import CONFIG_MAPPING

    own = OWN.get(family, {})
    for names, values in GROUPS:
        own = {**values, **own} if family in names.split() else own
    return shrunk(CONFIG_MAPPING[family], {**own, **more})


def shrunk(cls: Any, own: dict[str, Any]) -> Any:
    """A config of a class, and of the classes within it, with small sizes."""
    whole = cls()
    fields, parts = whole.to_dict(), {}
    for name in cls.sub_configs:
        if name in fields and getattr(whole, name) is not None:
            parts[name] = shrunk(type(getattr(whole, name)), own.get(name, {}))
    sizes = {name: size for name, size in SIZES.items() if name in fields}
    return cls(**{**sizes, **own, **parts})


def tiny_model(family: str, auto: Any, **more: Any) -> Any:
    """A random model in fp32 with weights so large that whatever is left out shows."""
    torch.manual_seed(0)
    made = auto.from_config(tiny(family, **more)).float().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                # Gemma 4 multiplies so much that larger ones would make rounding errors of everything.
                parameter.normal_(0, 0.05 if family.startswith("gemma4") else 0.2)
    return made
