"""Tiny models of OpenELM (a Qwen 3 whose blocks differ) and Refact (a Llama with scores that fall with distance)."""

from __future__ import annotations

import numpy as np

from tiny_cases.baichuan import of_distance
from tiny_parts import EMBD, HEADS, VOCAB, Tiny, config, llama_like, renamed, same_as, weight

HEAD = 32
SIZES = ((4, 1, 128), (8, 2, 256), (4, 4, 192))  # heads, key-value heads and width of each block
MOST_HEADS, WIDEST = 8, 256
REFACT_WIDTH = 512


def uniform(layers: int, heads: int, kv_heads: int, width: int, norms: bool) -> dict[str, tuple[int, ...]]:
    """Llama's tensors with other sizes."""
    rows = {"q_proj": heads * HEAD, "k_proj": kv_heads * HEAD, "v_proj": kv_heads * HEAD, "gate_proj": width,
            "up_proj": width}  # fmt: skip
    columns = {"o_proj": heads * HEAD, "down_proj": width}
    shapes = {}
    for name, shape in llama_like(HEAD, layers, qk_norms=norms, head=False).items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        shapes[name] = (rows[part], EMBD) if part in rows else (EMBD, columns[part]) if part in columns else shape
    return shapes


UNIFORM = Tiny("uniform", {}, uniform(len(SIZES), MOST_HEADS, MOST_HEADS, WIDEST, True))


def padded(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Zeros in the place of heads and columns that a block has not; each key-value head as often as it is used."""
    if "proj" not in name:
        return None
    heads, kv_heads, width = SIZES[int(name.split(".")[2])]
    values = weight(UNIFORM, name, shape)
    if "k_proj" in name or "v_proj" in name:
        few = values.reshape(MOST_HEADS, HEAD, EMBD)[:kv_heads].repeat(heads // kv_heads, 0)
        return np.concatenate([few, few[: MOST_HEADS - heads]]).reshape(shape)
    if "o_proj" in name:
        values[:, heads * HEAD :] = 0
    if "gate_proj" in name or "up_proj" in name:
        values[width:] = 0
    return values


def openelm(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    made = {
        "transformer.token_embeddings.weight": tensors["model.embed_tokens.weight"],
        "transformer.norm.weight": tensors["model.norm.weight"],
    }
    for i, (heads, kv_heads, width) in enumerate(SIZES):
        old, new = f"model.layers.{i}.", f"transformer.layers.{i}."
        q, o = (tensors[f"{old}self_attn.{name}_proj.weight"] for name in "qo")
        kv = [tensors[f"{old}self_attn.{name}_proj.weight"].reshape(MOST_HEADS, HEAD, EMBD) for name in "kv"]
        kv = [part[: heads : heads // kv_heads].reshape(-1, EMBD) for part in kv]
        gate, up, down = (tensors[f"{old}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        made |= {
            f"{new}attn_norm.weight": tensors[f"{old}input_layernorm.weight"],
            f"{new}ffn_norm.weight": tensors[f"{old}post_attention_layernorm.weight"],
            f"{new}attn.q_norm.weight": tensors[f"{old}self_attn.q_norm.weight"],
            f"{new}attn.k_norm.weight": tensors[f"{old}self_attn.k_norm.weight"],
            f"{new}attn.qkv_proj.weight": np.concatenate([q[: heads * HEAD], *kv]),
            f"{new}attn.out_proj.weight": o[:, : heads * HEAD].copy(),
            f"{new}ffn.proj_1.weight": np.concatenate([gate[:width], up[:width]]),
            f"{new}ffn.proj_2.weight": down[:, :width].copy(),
        }
    return made


REFACT_NAMES = (
    ("model.embed_tokens", "transformer.wte"),
    ("model.norm", "ln_f"),
    ("model.layers", "transformer.h"),
    ("input_layernorm", "ln_1"),
    ("post_attention_layernorm", "ln_2"),
    ("self_attn.q_proj", "attn.q"),
    ("self_attn.o_proj", "attn.c_proj"),
    ("mlp.down_proj", "mlp.c_proj"),
)


def refact(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    fused = {("k_proj", "v_proj"): ("self_attn.", "attn.kv"), ("gate_proj", "up_proj"): ("mlp.", "mlp.gate_up_proj")}
    made = dict(tensors)
    for (first, second), (part, name) in fused.items():
        for old in [key for key in tensors if first in key]:
            block = old[: old.index(part)]
            made[f"{block}{name}.weight"] = np.concatenate([made.pop(old), made.pop(old.replace(first, second))])
    return renamed(made, *REFACT_NAMES)


QWEN3 = config("Qwen3ForCausalLM", "qwen3", num_hidden_layers=len(SIZES), num_attention_heads=MOST_HEADS,
               num_key_value_heads=MOST_HEADS, intermediate_size=WIDEST, head_dim=HEAD, rms_norm_eps=1e-6,
               rope_theta=1e4, tie_word_embeddings=True)  # fmt: skip
LLAMA = config("LlamaForCausalLM", "llama", num_key_value_heads=1, intermediate_size=REFACT_WIDTH,
               tie_word_embeddings=True)  # fmt: skip
CASES = (
    Tiny(
        "openelm",
        {"architectures": ["OpenELMForCausalLM"], "model_type": "openelm", "model_dim": EMBD, "head_dim": HEAD,
         "num_transformer_layers": len(SIZES), "num_query_heads": [h for h, _, _ in SIZES],
         "num_kv_heads": [k for _, k, _ in SIZES], "ffn_multipliers": [w / EMBD for _, _, w in SIZES],
         "ffn_dim_divisor": 64, "ffn_with_glu": True, "activation_fn_name": "swish", "max_context_length": 512,
         "normalize_qk_projections": True, "share_input_output_layers": True, "rope_freq_constant": 10000,
         "normalization_layer_name": "rms_norm", "vocab_size": VOCAB, "torch_dtype": "bfloat16"},
        tokenizer="spm",
        **same_as(Tiny("openelm-twin", QWEN3, UNIFORM.shapes, special=padded), openelm),
    ),
    Tiny(
        "refact",
        {"architectures": ["GPTRefactForCausalLM"], "model_type": "gpt_refact", "n_embd": EMBD, "n_head": HEADS,
         "n_layer": 2, "n_positions": 512, "layer_norm_epsilon": 1e-5, "multi_query": True, "vocab_size": VOCAB,
         "torch_dtype": "bfloat16"},
        given=of_distance,
        mistakes=("gate", "norm"),
        **same_as(Tiny("refact-twin", LLAMA, uniform(2, HEADS, 1, REFACT_WIDTH, False)), refact),
    ),
)  # fmt: skip
