"""What projectors share: the config that their rows are read with, rules for layers with biases, the common keys.

The config of a projector is `vision_config` with four further entries: "model" is the whole config.json, "text" the
text model's with its defaults, "processor" what preprocessor_config.json and processor_config.json say together; and
"token" is a function that gives an added token's id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from ggufround.arch.config import n_embd, optional_integer, optional_number, shown, wrong
from ggufround.arch.metadata import count, real
from ggufround.arch.spec import KV, Config, Drop, Reader, Rule
from ggufround.errors import InputError, UnsupportedError
from ggufround.gguf_file import Field, Kind, array, boolean, string, u32

DEPTH = ("n_layers", "num_hidden_layers", "n_layer", "num_layers", "depth", "layers", "vt_num_hidden_layers")
WIDTH = ("hidden_size", "width", "vt_hidden_size")
HEADS = ("num_attention_heads", "num_heads", "heads", "vt_num_attention_heads")
FF = ("intermediate_size", "vt_intermediate_size")
MAX_BLOCKS = 512

COMPUTED = (Drop("*.position_ids", "the positions' numbers: llama.cpp counts them itself"),)


def section(config: Config, name: str) -> Mapping[str, Any]:
    """An object inside the config; empty where there is none."""
    value = config.get(name)
    return value if isinstance(value, Mapping) else {}


def whole(config: Config) -> Mapping[str, Any]:
    """The model's config.json."""
    return section(config, "model")


def blocks(config: Config) -> int:
    value = optional_integer(config, *DEPTH)
    if not value or value > MAX_BLOCKS:
        raise wrong(f"vision_config's {' or '.join(DEPTH)}", value, f"a whole number from 1 to {MAX_BLOCKS}")
    return value


def text_width(config: Config) -> int:
    return n_embd(section(config, "text"))


def side(config: Config, key: str) -> int:
    """A size in pixels; of two, [height, width], they must be equal."""
    value = config.get(key)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 16:
        raise wrong(f"vision_config's {key}", value, "a number of pixels")
    return value


def image(config: Config) -> int:
    return side(config, "image_size")


def patch(config: Config) -> int:
    return side(config, "patch_size")


def grid(config: Config) -> int:
    """Patches of the square image."""
    return (image(config) // patch(config)) ** 2


SIZES: Mapping[str, Callable[[Config], int]] = {
    "patch": patch,
    "grid": grid,
    "text": text_width,
    "heads": lambda config: int(config["num_attention_heads"]),
}


def both(source: str, to: str, shape: str, **further: Any) -> tuple[Rule, Rule]:
    """A weight and its bias, neither of which may be missing. `further` holds for both, `makes` for the weight."""
    made = further.pop("makes", "")
    return (
        Rule(f"{source}.weight", f"{to}.weight", shape, makes=made, **further),
        Rule(f"{source}.bias", f"{to}.bias", shape.split()[0], **further),
    )


def transformer(layer: str, names: Mapping[str, str], biased: bool = True) -> tuple[Rule, ...]:
    """Rules of a block: `names` gives the source of each part ("ln1", "attn_q", ..., "ffn_down") behind `layer`."""
    shapes = {
        "ln1": "embd", "ln2": "embd", "attn_q": "embd embd", "attn_k": "embd embd", "attn_v": "embd embd",
        "attn_out": "embd embd", "ffn_up": "ff embd", "ffn_gate": "ff embd", "ffn_down": "embd ff",
    }  # fmt: skip
    rules: tuple[Rule, ...] = ()
    for to, source in names.items():
        pair = both(layer + source, "v.blk.{i}." + to, shapes[to])
        rules += pair if biased else pair[:1]
    return rules


def processor_list(key: str) -> Reader:
    """Three floats of the processor's config, one a colour, as the array that clip.cpp reads."""

    def read(config: Config) -> Field:
        values = section(config, "processor").get(key)
        numbers = values if isinstance(values, list) else []
        if len(numbers) != 3 or not all(
            isinstance(v, int | float) and not isinstance(v, bool) and isfinite(v) for v in numbers
        ):
            found = "which is absent or does not state it" if values is None else f"found {shown(values)}"
            raise InputError(
                f"--mmproj needs {key}, three numbers of preprocessor_config.json, {found}; download that file"
            )
        return array(Kind.F32, [float(v) for v in numbers])

    return read


COMMON = (
    KV("has_vision_encoder", lambda config: boolean(True)),
    KV("vision.projection_dim", lambda config: u32(text_width(config))),
    KV("vision.image_size", lambda config: u32(image(config))),
    KV("vision.patch_size", lambda config: u32(patch(config))),
    KV("vision.embedding_length", count(*WIDTH)),
    KV("vision.feed_forward_length", count(*FF)),
    KV("vision.block_count", lambda config: u32(blocks(config))),
    KV("vision.attention.head_count", count(*HEADS)),
    KV("vision.image_mean", processor_list("image_mean")),
    KV("vision.image_std", processor_list("image_std")),
)


def projector(name: str) -> KV:
    return KV("projector_type", lambda config: string(name))


def epsilon(*keys: str) -> KV:
    return KV("vision.attention.layer_norm_epsilon", real(*keys))


def activation(**flags: str | None) -> tuple[KV, ...]:
    """The key that says each activation ("gelu": "use_gelu"; None: clip.cpp's own, QuickGELU). Others are refused."""

    def read(key: str) -> Reader:
        def flag(config: Config) -> Field | None:
            value = config.get("hidden_act")
            if value not in flags:
                raise UnsupportedError(
                    f"config.json: vision_config's hidden_act is {shown(value)}; llama.cpp runs this projector with "
                    f"{' or '.join(flags)}"
                )
            return boolean(True) if flags[value] == key else None

        return flag

    return tuple(KV(key, read(key)) for key in dict.fromkeys(v for v in flags.values() if v)) or (
        KV("use_gelu", read("")),
    )


def processor_number(config: Config, key: str, inner: tuple[str, ...] = ()) -> int | None:
    """A number of the processor's config, or the first of `inner` in the object of that name."""
    value = section(config, "processor").get(key)
    if isinstance(value, Mapping):
        value = next((value[name] for name in inner if name in value), None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def agrees(key: str, reads: Callable[[Config], int], *inner: str) -> Callable[[Config], None]:
    """The processor's number, where it says one, is what the weights are made for."""

    def check(config: Config) -> None:
        stated, needed = processor_number(config, key, inner), reads(config)
        if stated is not None and stated != needed:
            raise InputError(
                f"preprocessor_config.json: {key} is {stated}, but the weights are made for {needed}; is it another "
                "model's file?"
            )

    return check


FIXED_IMAGE = (agrees("crop_size", image, "height", "shortest_edge"), agrees("size", image, "height", "shortest_edge"))
PATCH = agrees("patch_size", patch)


def feed_forward_is_not_square(config: Config) -> None:
    """clip.cpp takes up for down where the matrices' shapes do not tell them apart (`is_ffn_swapped`)."""
    if optional_integer(config, *FF) == optional_integer(config, *WIDTH):
        raise UnsupportedError(
            "config.json: vision_config's intermediate_size equals its hidden_size; llama.cpp then exchanges the two "
            "matrices of its feed-forward part"
        )


def vision_fixed(key: str, *allowed: object) -> Callable[[Config], None]:
    """clip.cpp has a value built in that the file cannot change; None allows for its absence."""

    def check(config: Config) -> None:
        if config.get(key) not in allowed:
            values = " or ".join(shown(value) for value in allowed if value is not None) or "nothing"
            raise UnsupportedError(
                f"config.json: vision_config's {key} is {shown(config.get(key))}; llama.cpp runs this projector with "
                f"{values}"
            )

    return check


def model_number(config: Config, key: str, default: float | None = None) -> float:
    value = optional_number(whole(config), key)
    if value is None and default is None:
        raise InputError(f"config.json has no {key}; it is needed for --mmproj")
    return float(default if value is None else value)  # type: ignore[arg-type]
