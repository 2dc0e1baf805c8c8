"""Rotary position embeddings: the parameters as configs of every age state them, their keys, and factor tensors.

Configs say `rope_theta` and `rope_scaling` (with `type` or `rope_type`), or, since transformers 5, `rope_parameters`,
which Gemma 3 splits into `full_attention` and `sliding_attention`. `parameters` brings all of them to one form, as
`TextModel.__init__` in llama.cpp's conversion/base.py does.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log, pi, sqrt
from typing import Any

import numpy as np

from ggufround.arch.config import (
    N_CONTEXT,
    ROPE_THETA,
    ROPE_THETA_LOCAL,
    find,
    head_dim,
    integer,
    n_embd,
    n_head,
    optional_integer,
    optional_number,
    shown,
    wrong,
)
from ggufround.arch.spec import F32, Architecture, Config, Output, Reader
from ggufround.errors import InputError, UnsupportedError
from ggufround.gguf_file import Field, Kind, array, f32, string, u32

FULL, SLIDING = "full_attention", "sliding_attention"


def _section(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise wrong(name, value, "an object")
    return {key: item for key, item in value.items() if item is not None}


def parameters(config: Config) -> dict[str, Any]:
    """The rope parameters in transformers 5's form: flat, or one section for each kind of attention."""
    name, value = find(config, ("rope_parameters", "rope_scaling")) or ("rope_parameters", {})
    rope = _section(name, value)
    if FULL in rope or SLIDING in rope:
        return rope
    if (local := optional_number(config, *ROPE_THETA_LOCAL)) is not None:
        rope[SLIDING] = {"rope_theta": local}
    if "rope_theta" not in rope and (theta := optional_number(config, *ROPE_THETA)) is not None:
        rope["rope_theta"] = theta
    if "rope_type" not in rope and "type" in rope:
        rope["rope_type"] = rope["type"]
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if key not in rope and config.get(key) is not None:
            rope[key] = config[key]
    return rope


def full(config: Config) -> dict[str, Any]:
    """The parameters of the layers with full attention."""
    rope = parameters(config)
    if FULL not in rope:
        return rope
    theta = find(config, ROPE_THETA)
    return ({"rope_theta": theta[1]} if theta else {}) | _section(FULL, rope[FULL])


def rope_type(config: Config) -> str:
    kind = full(config).get("rope_type", "default")
    if not isinstance(kind, str):
        raise wrong("rope_type", kind, "a string")
    return {"su": "longrope"}.get(kind.lower(), kind.lower())  # Phi-3's first name for it


def check(arch: Architecture, config: Config) -> None:
    """Refuse a kind of scaling that llama.cpp would ignore for this architecture."""
    if (kind := rope_type(config)) not in arch.rope_types:
        raise UnsupportedError(
            f"config.json: rope_type is {shown(kind)}; for {arch.name} llama.cpp knows {', '.join(arch.rope_types)}"
        )


def scaling_type(config: Config) -> Field | None:
    kind = rope_type(config)
    scaled = kind in ("linear", "yarn") and "factor" in full(config)
    return string(kind) if scaled or kind == "longrope" else None


def freq_base(config: Config) -> Field | None:
    theta = optional_number(full(config), "rope_theta")
    return None if theta is None else f32(theta)


def freq_base_if_other(config: Config) -> Field | None:
    """For architectures whose converter leaves it out: llama.cpp's own is 10000, and it reads any."""
    base = freq_base(config)
    return None if base is None or base.value == 10000 else base


def freq_base_sliding(config: Config) -> Field | None:
    theta = optional_number(_section(SLIDING, parameters(config).get(SLIDING, {})), "rope_theta")
    return None if theta is None else f32(theta)


def scaled_number(kinds: tuple[str, ...], *keys: str) -> Reader:
    """A number that counts only with a scaling of one of `kinds` and a factor."""

    def read(config: Config) -> Field | None:
        rope = full(config)
        value = optional_number(rope, *keys) if rope_type(config) in kinds and "factor" in rope else None
        return None if value is None else f32(value)

    return read


def yarn_correction(config: Config) -> Field | None:
    """What llama.cpp must multiply its own YaRN factor, 0.1 ln(factor) + 1, with to get a stated attention_factor.

    The converter writes only yarn_attn_factor, which llama.cpp's src/llama-context.cpp then replaces by its own.
    """
    rope = full(config)
    stated, factor = optional_number(rope, "attention_factor"), optional_number(rope, "factor")
    if rope_type(config) != "yarn" or stated is None or factor is None:
        return None
    ratio = stated / (0.1 * log(factor) + 1 if factor > 1 else 1.0)
    return None if abs(ratio - 1) < 1e-6 else f32(ratio)


def yarn_context(config: Config) -> Field | None:
    rope = full(config)
    return u32(original_context(rope)) if rope_type(config) == "yarn" and "factor" in rope else None


def original_context(rope: Config) -> int:
    if (value := optional_integer(rope, "original_max_position_embeddings")) is None:
        raise InputError("config.json: the rope parameters lack original_max_position_embeddings, which scaling needs")
    return value


def sections(config: Config) -> Field | None:
    """Qwen-VL: how many pairs of columns turn by a token's time, height and width, as four numbers."""
    rope = full(config)
    if (stated := rope.get("mrope_section")) is None:
        return None
    if not isinstance(stated, list) or not 0 < len(stated) <= 4:
        raise wrong("mrope_section", stated, "a list of up to four numbers")
    values = [optional_integer({"mrope_section": value}, "mrope_section") for value in stated]
    return array(Kind.I32, [value or 0 for value in values] + [0] * (4 - len(values)))


def _tensor(name: str, values: object) -> Output:
    array: F32 = np.asarray(values, dtype=np.float32)
    return Output(name, array.shape, values=array, float32=True)


def llama3_factors(config: Config) -> tuple[Output, ...]:
    """rope_freqs.weight of Llama 3.1: each frequency's divisor, float32 [head_dim / 2].

    Wavelengths beyond original / low_freq_factor are divided by `factor`, those below original / high_freq_factor
    are kept, and those between are blended (`LlamaModel.generate_extra_tensors` in conversion/llama.py). Its float32
    steps are followed one by one; only the power is rounded correctly here and within an ulp in torch, which can move
    the last bit of a factor (for the thetas of Llama 3 none moves).
    """
    if rope_type(config) != "llama3":
        return ()
    rope = full(config)
    theta = _positive(rope, "rope_theta", 10000.0)
    dim = head_dim(config)
    factor = _positive(rope, "factor", 8.0)
    low = _positive(rope, "low_freq_factor", 1.0)
    high = _positive(rope, "high_freq_factor", 4.0)
    if high < low:
        raise wrong("high_freq_factor", high, f"a number from low_freq_factor, {low}, on")
    context = optional_integer(rope, "original_max_position_embeddings") or 8192
    one = np.float32(1)
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    powers = (np.float64(np.float32(theta)) ** exponents.astype(np.float64)).astype(np.float32)
    wavelengths = (one / (one / powers)) * np.float32(2 * pi)
    between = np.float32(high - low) or one  # 0 in Llama 4, where no wavelength lies between
    smooth = ((one / wavelengths) * np.float32(context) - np.float32(low)) / between
    blended = one / ((one - smooth) / np.float32(factor) + smooth)
    factors = np.where(wavelengths > np.float32(context / low), np.float32(factor), blended)
    factors = np.where(wavelengths < np.float32(context / high), one, factors)
    return (_tensor("rope_freqs.weight", factors),)


def _positive(rope: Config, key: str, default: float) -> float:
    value = optional_number(rope, key)
    if value is not None and value <= 0:
        raise wrong(key, value, "a number above 0")
    return default if value is None else value


def rotated(config: Config) -> int:
    """Columns of a head that are rotated, as Phi-3's converter counts them."""
    share = _positive(parameters(config), "partial_rotary_factor", 1.0)
    if share > 1:
        raise wrong("partial_rotary_factor", share, "at most 1")
    return int(share * n_embd(config)) // n_head(config)


def longrope_factors(config: Config) -> tuple[Output, ...]:
    """rope_factors_long.weight and rope_factors_short.weight, float32 [rotated / 2], where the config has them."""
    return factor_tensors(config, rotated(config))


def factor_tensors(config: Config, columns: int) -> tuple[Output, ...]:
    """The same for heads of which so many columns are rotated."""
    rope = parameters(config)
    if not rope.get("long_factor"):
        return ()
    half = columns // 2
    return tuple(_tensor(f"rope_factors_{kind}.weight", _factors(rope, kind, half)) for kind in ("long", "short"))


def _factors(rope: Config, kind: str, expected: int) -> list[float]:
    key = f"{kind}_factor"
    values = rope.get(key)
    if not isinstance(values, list) or len(values) != expected:
        raise wrong(key, values, f"a list of {expected} numbers")
    return [number for value in values if (number := optional_number({key: value}, key)) is not None]


def longrope_attention_factor(config: Config) -> Field | None:
    """How much longer contexts sharpen attention: sqrt(1 + ln(scale) / ln(original)) (LongRoPE, arXiv 2402.13753)."""
    rope = parameters(config)
    if not rope.get("long_factor"):
        return None
    original = original_context(rope)
    scale = integer(config, *N_CONTEXT) / max(original, 1)
    return f32(sqrt(1 + log(scale) / log(original)) if scale > 1.0 and original > 1 else 1.0)


def original_context_length(config: Config) -> Field | None:
    return u32(original_context(parameters(config)))
