"""Tiny configurations of every causal family of transformers, and settings of real checkpoints."""

import torch
from transformers import CONFIG_MAPPING

__all__ = ["VARIANTS", "make_config", "randomise"]

# Layers; a window shorter than every row.
L, W = 4, 16  # layers; window, shorter than every row

#: Attribute -> value, where a configuration class has that attribute (and its default is not None,
#: unless listed in _EVEN_NONE).
SIZES = {
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "embedding_dim",
            "emb_dim",
            "embedding_size",
            "input_embedding_size",
            "output_embedding_size",
            "word_embed_proj_dim",
            "lru_width",
            "hidden_size_per_layer_input",
            "cross_attention_hidden_size",
        ),
        64,
    ),
    "attention_hidden_size": 64,
    "hidden_size_per_layer_input": 16,
    "laurel_rank": 8,
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "decoder_layers",
            "num_decoder_layers",
            "num_blocks",
        ),
        L,
    ),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers"), L),
    "num_layers_per_stack": 2,
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "attention_heads",
            "num_decoder_attention_heads",
            "num_encoder_attention_heads",
            "swa_num_attention_heads",
            "num_query_groups",
        ),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(
        ("head_dim", "swa_head_dim", "kv_channels", "attention_head_size", "d_head", "dim_head"), 16
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "n_inner",
            "ffn_dim",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "ffn_hidden_size",
            "dff",
            "dim_ff",
            "d_inner",
            "feed_forward_size",
            "intermediate_size_mlp",
            "dense_intermediate_size",
        ),
        96,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "shared_experts_intermediate_size",
            "expert_ffn_hidden_size",
            "router_hidden_size",
        ),
        32,
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(
        ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2
    ),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    "zero_expert_num": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "qk_head_dim": 24,
    "o_lora_rank": 16,
    "o_groups": 2,
    "rotary_dim": 8,
    # Few heads make ties, which top-k breaks at random.
    "index_n_heads": 32,
    "index_head_dim": 16,
    "index_topk": 16,
    "vocab_size": None,
    "vocab_size_per_layer_input": None,
    "decoder_vocab_size": None,
    **dict.fromkeys(
        (
            "max_position_embeddings",
            "n_positions",
            "max_seq_len",
            "context_length",
            "n_ctx",
            "model_max_length",
        ),
        512,
    ),
    # Windows shorter than every row: what a probe of six tokens does not see.
    **dict.fromkeys(
        (
            "sliding_window",
            "sliding_window_size",
            "attention_window_size",
            "attention_chunk_size",
            "window_size",
            "local_attention",
        ),
        W,
    ),
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_dt_rank": 8,
    "mamba_d_ssm": 128,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 2,
    "state_size": 8,
    "time_step_rank": 8,
    "chunk_size": 16,
    "mamba_chunk_size": 16,
    "block_size": 16,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "initializer_range": 0.12,
    "init_std": 0.12,
    "initializer_factor": 0.12,
    **dict.fromkeys(
        (
            "attention_dropout",
            "hidden_dropout",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "attn_pdrop",
            "embd_pdrop",
            "resid_pdrop",
            "dropout",
            "activation_dropout",
            "residual_dropout",
            "resid_dropout",
            "embedding_dropout",
            "classifier_dropout",
            "embed_dropout",
            "summary_first_dropout",
            "router_jitter_noise",
            "input_jitter_noise",
            "emb_pdrop",
            "attn_dropout",
            "mlp_dropout",
            "layerdrop",
            "decoder_layerdrop",
            "encoder_layerdrop",
            "dropout_p",
            "local_attention_probs_dropout_prob",
            "lsh_attention_probs_dropout_prob",
        ),
        0.0,
    ),
}
_EVEN_NONE = {"n_inner"}
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")

#: Further settings of single families: for a tiny model to exist and to have all kinds of layers.
TWEAKS = {}
#: name -> (family, settings): what real checkpoints set and the class's defaults do not.
VARIANTS = {}


def _register():
    t, v = TWEAKS, VARIANTS
    t["bert"] = t["roberta"] = t["electra"] = t["big_bird"] = t["bert-generation"] = {
        "is_decoder": True
    }
    t["gpt_neo"] = {"attention_types": [[["global", "local"], 2]], "num_layers": 4}
    t["jamba"] = {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "use_mamba_kernels": False,
    }
    t["zamba"] = {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "n_mamba_heads": 2,
        "use_mamba_kernels": False,
        "num_hidden_layers": 6,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
    }
    t["mamba2"] = {"num_heads": 8, "head_dim": 16, "expand": 2, "n_groups": 2}
    t["hrm_text"] = {"num_layers_per_stack": None, "num_hidden_layers": 2}
    t["hunyuan_v1_dense"] = t["hunyuan_v1_moe"] = {"head_dim": 16}
    t["reformer"] = {
        "is_decoder": True,
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [32, 32],
        "num_buckets": 8,
        "attn_layers": ["local", "lsh", "local", "lsh"],
    }
    t["qwen4_exp_text"] = {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    }
    t["zamba2"] = {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "attention_head_dim": 32,
        "attention_hidden_size": 128,
    }
    t["zaya"] = {"num_experts_per_tok": 1}
    t["lfm2"] = {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}
    t["granitemoehybrid"] = {"layer_types": ["linear_attention", "full_attention"] * 2}
    t["mpt"] = {"attn_config": {"attn_pdrop": 0}}
    t["nemotron"] = {"head_dim": 16, "num_key_value_heads": 2}
    t["ministral"] = {"head_dim": 16}
    t["lfm2_moe"] = {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}
    t["bamba"] = {"attn_layer_indices": [1, 3]}
    t["dots1"] = {
        "n_shared_experts": 1,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    }
    t["dbrx"] = {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    }
    t["gemma3n_text"] = {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0],
        "intermediate_size": 96,
    }
    t["deepseek_v2"] = {"num_experts_per_tok": 2, "n_routed_experts": 8, "n_shared_experts": 1}
    t["deepseek_v4"] = {"head_dim": 16}
    t["minicpm3"] = {"dim_model_base": 64}
    t["xlstm"] = {
        "qk_dim_factor": 1.0,
        "hidden_size": 64,
        "embedding_dim": 64,
        "num_heads": 4,
        "num_blocks": 4,
        "num_hidden_layers": 4,
    }
    t["falcon"] = {"new_decoder_architecture": False}
    t["rwkv"] = {"attention_hidden_size": 64}
    t["xmod"] = {"default_language": "en_XX"}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    t["cohere_compass_text"] = {"rope_parameters": {"full_attention": rope}}
    t["qwen4_exp.text_config"] = t["qwen4_exp_text"]
    v["bert-generation/both_ways"] = ("bert-generation", {"is_decoder": False})
    v["granite/scaled"] = ("granite", {"logits_scaling": 8.0})
    v["granitemoe/scaled"] = ("granitemoe", {"logits_scaling": 8.0})
    v["falcon_h1/scaled"] = ("falcon_h1", {"lm_head_multiplier": 0.0195})
    v["falcon/alibi"] = ("falcon", {"alibi": True})
    v["falcon/new"] = ("falcon", {"new_decoder_architecture": True})
    v["minicpm3/scaled"] = ("minicpm3", {"dim_model_base": 16})
    v["gemma3_text/capped"] = ("gemma3_text", {"final_logit_softcapping": 30.0})
    v["gemma4_text/capped"] = ("gemma4_text", {"final_logit_softcapping": 30.0})
    v["cohere2/plain"] = ("cohere2", {"logit_scale": 1.0})
    v["gemma2/plain"] = ("gemma2", {"final_logit_softcapping": None})
    v["mpt/scaled"] = ("mpt", {"logit_scale": 0.5, "attn_config": {"attn_pdrop": 0}})
    v["opt/350m"] = ("opt", {"word_embed_proj_dim": 32, "do_layer_norm_before": False})
    v["qwen2/window"] = (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": W, "max_window_layers": 2},
    )
    v["mistral/nowindow"] = ("mistral", {"sliding_window": None})
    v["mixtral/window"] = ("mixtral", {"sliding_window": W})
    v["phi3/longrope"] = (
        "phi3",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 8,
                "long_factor": [4.0] * 8,
                "original_max_position_embeddings": 32,
                "factor": 4.0,
            },
            "original_max_position_embeddings": 32,
            "max_position_embeddings": 512,
        },
    )
    v["llama/dynamic"] = (
        "llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
            "max_position_embeddings": 64,
        },
    )
    v["inkling_text/unpadded"] = (
        "inkling_text",
        {"unpadded_vocab_size": 324, "logits_mup_width_multiplier": 1.0},
    )
    v["inkling_text/plain"] = ("inkling_text", {"logits_mup_width_multiplier": 1.0})
    v["hyperclovax/scaled"] = ("hyperclovax", {"logits_scaling": 0.5})
    v["llama/tied"] = ("llama", {"tie_word_embeddings": True})
    v["phimoe/bias"] = ("phimoe", {"lm_head_bias": True})
    v["zaya/bias"] = ("zaya", {"lm_head_bias": True})
    v["mixtral/jitter"] = ("mixtral", {"router_jitter_noise": 0.1})
    v["gpt2/dropout"] = ("gpt2", {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1})


def _sizes(cls, vocabulary, specials, all_kinds):
    """Return constructor arguments that shrink a configuration class."""
    default = cls()
    have = default.to_dict()
    kwargs = {}
    rope_is_head = have.get("head_dim") is not None and have.get("head_dim") == have.get(
        "qk_rope_head_dim"
    )
    for name, value in SIZES.items():
        if name not in have or (have[name] is None and name not in _EVEN_NONE):
            continue
        kwargs[name] = vocabulary if value is None else value
    if have.get("kv_lora_rank") is not None and "num_key_value_heads" in kwargs:
        kwargs["num_key_value_heads"] = SIZES["num_attention_heads"]
    if rope_is_head:
        kwargs["head_dim"] = SIZES["qk_rope_head_dim"]
    for name in _SPECIAL:
        if name in have:
            kwargs[name] = specials[name]
    # One layer of each kind, up to L.
    for name in (
        "layer_types",
        "mlp_layer_types",
        "layers_block_type",
        "indexer_types",
        "block_types",
    ):
        kinds = have.get(name)
        if all_kinds and isinstance(kinds, (list, tuple)) and kinds and name != "block_types":
            distinct = list(dict.fromkeys(kinds))
            filled = distinct + [distinct[-1]] * L
            kwargs[name] = filled[: max(L, len(distinct))]
    return kwargs


def make_config(family, vocabulary, specials, extra, *, all_kinds=True):
    """Return a tiny configuration of a family, with one layer of each kind where that can be."""
    cls = CONFIG_MAPPING[family]
    kwargs = _sizes(cls, vocabulary, specials, all_kinds)
    subs = {}
    own = cls() if getattr(cls, "sub_configs", None) else None
    for name in getattr(cls, "sub_configs", {}):
        part = getattr(own, name, None)
        if part is not None and hasattr(part, "to_dict"):
            tweak = TWEAKS.get(f"{family}.{name}", {})
            subs[name] = {**_sizes(type(part), vocabulary, specials, all_kinds), **tweak}
    return cls(**{**kwargs, **subs, **TWEAKS.get(family, {}), **extra})


def randomise(model):
    """Make every weight matter: no zeros, no ones, predictions of very different entropies."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if not p.is_floating_point() or p.numel() == 0:
                continue
            if p.unique().numel() == 1 or p.ndim < 2:
                p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p.dtype))
            elif p.ndim == 2 and float(p.std()) < 0.1:
                p.copy_((0.15 * torch.randn(p.shape, generator=generator)).to(p.dtype))
            elif p.ndim == 3 and float(p.std()) < 0.05:
                p.copy_((0.12 * torch.randn(p.shape, generator=generator)).to(p.dtype))


_register()
