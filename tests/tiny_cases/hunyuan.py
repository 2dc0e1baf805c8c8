"""Tiny Hunyuan models, plain and with experts."""

from __future__ import annotations

from tiny_parts import EMBD, FF, Shapes, Tiny, attention, config, ends, experts, feed_forward, norms

LAYERS = 2
ALPHA = {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
         "type": "dynamic"}  # fmt: skip


def hunyuan_like(head_dim: int, sparse: bool, head: bool) -> Shapes:
    yield from ends(head=head)
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        yield from norms(block, "input_layernorm", "post_attention_layernorm")
        yield from attention(block, head_dim)
        yield f"{block}self_attn.query_layernorm.weight", (head_dim,)
        yield f"{block}self_attn.key_layernorm.weight", (head_dim,)
        if not sparse:
            yield from feed_forward(block)
            continue
        for name, shape in experts(f"{block}mlp.", "gate_proj", "up_proj", "down_proj"):
            yield name.replace("mlp.gate.weight", "mlp.gate.wg.weight"), shape
        for name, shape in (("gate_proj", (FF, EMBD)), ("up_proj", (FF, EMBD)), ("down_proj", (EMBD, FF))):
            yield f"{block}mlp.shared_mlp.{name}.weight", shape


CASES = (
    Tiny(
        "hunyuan",
        config("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", head_dim=64, max_position_embeddings=32768,
               rope_scaling=ALPHA, rope_theta=10000.0, tie_word_embeddings=True, pad_token_id=0, eod_token_id=3),
        dict(hunyuan_like(64, sparse=False, head=False)),
    ),
    Tiny(
        "hunyuan-plain-rope",
        config("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", head_dim=32, pad_token_id=0, rope_theta=10000.0),
        dict(hunyuan_like(32, sparse=False, head=True)),
    ),
    Tiny(
        "hunyuan-moe",
        config("HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe", head_dim=32, pad_token_id=0, num_experts=4,
               moe_topk=[2] * LAYERS, num_shared_expert=[1] * LAYERS, moe_intermediate_size=[FF] * LAYERS,
               rope_theta=10000.0),
        dict(hunyuan_like(32, sparse=True, head=True)),
    ),
)  # fmt: skip
