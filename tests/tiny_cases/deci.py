"""Tiny models of DeciLM and the Nemotrons found by NAS: what their blocks lack is zeros in a Llama that computes the
same."""

from __future__ import annotations

import numpy as np

from tiny_cases.first import LLAMA3_SCALING
from tiny_parts import EMBD, HEADS, Tiny, config, llama_like, same_as, weight

HEAD = EMBD // HEADS
WIDE = 512
# key-value heads and width of each block; no heads: no attention, no width: no feed-forward part
BLOCKS = ((2, 256), (0, 256), (4, 512), (0, 0), (1, 256))
ROPE = {"rope_theta": 5e5, "rope_scaling": LLAMA3_SCALING}


def block(kv_heads: int, width: int, linear: bool = False) -> dict[str, object]:
    group, multiple = HEADS // kv_heads if kv_heads else None, width * 3 / 2 / EMBD if width else None
    return {
        "attention": {"n_heads_in_group": group, "no_op": not group and not linear, "replace_with_linear": linear},
        "ffn": {"ffn_mult": multiple, "no_op": not width, "replace_with_linear": False},
    }


def shapes(width: int, layers: int) -> dict[str, tuple[int, ...]]:
    found = {
        name: tuple(width if size == 192 else size for size in shape)
        for name, shape in llama_like(layers=layers).items()
    }
    return found | {name: (EMBD, EMBD) for name in found if "k_proj" in name or "v_proj" in name}


def twin(blocks: tuple[tuple[int, int], ...]) -> Tiny:
    """A Llama with a key-value head for every head, some of them equal, and with zeros for what is absent."""
    width = max(ff for _, ff in blocks)
    plain = Tiny("plain", {}, shapes(width, len(blocks)))

    def special(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        if ".layers." not in name or "norm" in name:
            return None
        kv_heads, ff = blocks[int(name.split(".")[2])]
        values = weight(plain, name, shape)
        if "k_proj" in name or "v_proj" in name:
            few = values.reshape(HEADS, HEAD, EMBD)[: max(kv_heads, 1)]
            return few.repeat(HEADS // len(few), 0).reshape(shape)
        if "o_proj" in name and not kv_heads:
            return np.zeros_like(values)
        if "mlp" in name:
            values[(slice(None), slice(ff, None)) if "down_proj" in name else slice(ff, None)] = 0
        return values

    of_llama = config("LlamaForCausalLM", "llama", num_hidden_layers=len(blocks), num_key_value_heads=HEADS,
                      intermediate_size=width, **ROPE)  # fmt: skip
    return Tiny("deci-twin", of_llama, plain.shapes, special=special)


def without_absent(blocks: tuple[tuple[int, int], ...], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    made = {}
    for name, tensor in tensors.items():
        kv_heads, ff = blocks[int(name.split(".")[2])] if ".layers." in name else (HEADS, WIDE)
        if not kv_heads and ("self_attn" in name or "input_layernorm" in name):
            continue
        if not ff and ("mlp" in name or "post_attention_layernorm" in name):
            continue
        if "k_proj" in name or "v_proj" in name:
            heads = tensor.reshape(HEADS, HEAD, EMBD)
            tensor = heads[:: HEADS // kv_heads].reshape(-1, EMBD)
        elif "mlp" in name:
            tensor = tensor[:, :ff] if "down_proj" in name else tensor[:ff]
        made[name] = np.ascontiguousarray(tensor)
    return made


def linear() -> dict[str, tuple[int, ...]]:
    """Three blocks, with one matrix in place of the second's attention."""
    found = {name: shape for name, shape in shapes(256, 3).items() if "layers.1.self_attn" not in name}
    return found | {"model.layers.1.self_attn.linear_attn.weight": (EMBD, EMBD)}


NAS = {"num_key_value_heads": None, "intermediate_size": None, **ROPE}
UNEVEN = ((2, 192), (4, 192), (1, 192))
CASES = (
    Tiny(
        "deci",
        config("DeciLMForCausalLM", "nemotron-nas", num_hidden_layers=5,
               block_configs=[block(*each) for each in BLOCKS], **NAS),
        **same_as(twin(BLOCKS), lambda tensors: without_absent(BLOCKS, tensors)),
    ),
    # no model of transformers has a matrix in place of attention
    Tiny(
        "deci-linear",
        config("DeciLMForCausalLM", "nemotron-nas", num_hidden_layers=3,
               block_configs=[block(4, 256), block(0, 256, linear=True), block(4, 256)], **NAS),
        linear(), loads=False, proof="loads",
    ),
    Tiny(
        "deci-7b",
        config("DeciLMForCausalLM", "deci", num_hidden_layers=3, num_key_value_heads=None,
               num_key_value_heads_per_layer=[2, 4, 1], **ROPE),
        tokenizer="spm",
        **same_as(twin(UNEVEN), lambda tensors: without_absent(UNEVEN, tensors)),
    ),
)  # fmt: skip
