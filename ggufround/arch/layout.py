"""From an architecture's rules and a checkpoint's headers to the tensors of the GGUF file.

Pull-based: each output names all its sources, so that none is buffered until a sibling turns up. Every checkpoint
tensor is used exactly once or dropped with a reason; what remains is refused, since a model that lacks a part of its
weights runs and is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from ggufround.arch import rope, sentence
from ggufround.arch.config import LAYER, configuration, n_expert, n_layer
from ggufround.arch.pieces import pieces_of
from ggufround.arch.spec import Architecture, Config, Drop, Layout, Output, Rule
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError, UnsupportedError

# What llama.cpp has no place for in any model.
DROPS = (
    Drop("*.rotary_emb.inv_freq", "rotary frequencies: computed by llama.cpp"),
    Drop("*.attention.bias", "causal mask: computed by llama.cpp"),
    Drop("*.attention.masked_bias", "causal mask: computed by llama.cpp"),
    *(
        Drop(f"*.{name}", "scale of activations or of an FP8 key-value cache: llama.cpp quantises those itself")
        for name in ("k_scale", "v_scale", "input_scale", "activation_scale")
    ),
)

_AUDIO = "audio: not part of the {} model"
_VISION = "vision: not part of the text model"
_TEXT = "text: not part of the projector"
# What belongs to another part of a composite model (`TextModel.filter_tensors`, `MmprojModel.filter_tensors`).
_AUDIO_NAMES = ("*audio.*", "*audio_*", "*talker.*", "*token2wav.*", "*code2wav.*", "sound_*", "conformer.*")
_VISION_NAMES = (
    *("*vision_*", "*vision.*", "*visual.*", "vpm.*", "vit.*", "siglip2.*", "resampler.*", "merger.*", "mlp1.*"),
    *("*projector.*", "*image_newline", "*view_seperator", "*patch_embed*", "*patch_merger.*", "*model.connector.*"),
)
_TEXT_NAMES = (
    *("*language_model.*", "*text_model.*", "*lm_head.*", "model.layers.*", "model.embed_tokens.*", "model.norm.*"),
    *("thinker.model.*", "llm.*"),
)
FOREIGN = {
    "text": (
        *(Drop(name, _AUDIO.format("text")) for name in _AUDIO_NAMES),
        *(Drop(name, _VISION) for name in _VISION_NAMES),
    ),
    "vision": (
        *(Drop(name, _AUDIO.format("vision")) for name in _AUDIO_NAMES),
        *(Drop(name, _TEXT) for name in _TEXT_NAMES),
    ),
}

# Kinds of tensor that the converter stores in F32 whatever the file's type (conversion/base.py, prepare_tensors).
FLOAT32 = (
    "_norm.weight",
    "altup_correct_coef.weight",
    "altup_predict_coef.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "indexer.proj.weight",
    "position_embd.weight",
    "shortconv.conv.weight",
    "ssm_conv1d.weight",
    "ssm_conv1d_k.weight",
    "ssm_conv1d_q.weight",
    "ssm_conv1d_v.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_first.weight",
    "time_mix_lerp_fused.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "token_types.weight",
)

SHOWN = 6  # names listed in a message


def keeps_float32(name: str, shape: tuple[int, ...]) -> bool:
    """Whether llama.cpp's converter stores the tensor in F32 even in an F16 file."""
    return len(shape) <= 1 or name.endswith(FLOAT32) or not name.endswith((".weight", ".weight.1"))


def outputs(arch: Architecture, checkpoint: Checkpoint) -> Layout:
    """The tensors of the GGUF file and where each comes from.

    Raises InputError for a missing tensor and for a shape that does not match config.json, UnsupportedError for
    tensors that no rule takes and for a config that llama.cpp would run wrongly.
    """
    config = {**configuration(arch, checkpoint), **sentence.modules(checkpoint)}
    if arch.part == "text":
        rope.check(arch, config)
    for check in arch.checks:
        check(config)
    dense = any("_Dense." in name for rule in arch.rules for name in _sources(rule))
    drops = (*DROPS, *arch.drops, *FOREIGN[arch.part], *(() if dense else (sentence.DROP,)))
    drops = tuple(drop for drop in drops if not drop.beside or drop.beside in checkpoint.tensors)
    borrowed = {source for rule in arch.rules if rule.borrows for source in _sources(rule)}
    borrowed = {name for name in checkpoint.tensors if _short(arch, name) in borrowed}
    reasons = {
        name: reason
        for name in checkpoint.tensors
        if name not in borrowed and (reason := _drop_reason(drops, name)) is not None
    }
    if arch.beyond:
        reasons |= {name: arch.beyond for name in checkpoint.tensors if _layer(name) >= _blocks(arch, config)}
    sources = without_prefixes(arch, {name: ref for name, ref in checkpoint.tensors.items() if name not in reasons})
    for name in number_names(arch, config):  # where one is absent, `metadata` says so
        if name in sources:
            reasons[sources.pop(name).name] = "a number: it goes into the metadata"
    present = {_layer(name) for name in sources}
    made: dict[str, Output] = {}
    missing: dict[str, str] = {}
    for rule, here in _per_block(arch, config):
        if rule.to in made:
            continue
        if (output := _output(arch, rule, here, sources)) is not None:
            made[rule.to] = output
        elif not rule.optional and not _absent_as_a_whole(arch, config, here[LAYER], rule, present):
            missing.setdefault(rule.to, _sources(rule)[0])
    if absent := [source for to, source in missing.items() if to not in made]:
        raise InputError(
            f"the checkpoint lacks {len(absent)} tensors that {arch.name} with {_blocks(arch, config)} layers needs: "
            f"{_some(absent)} (names without their prefix); is a shard missing, or config.json of another model?"
        )
    for compute in arch.computed:
        made |= {output.name: output for output in compute(config)}
    used = _used_rows(made, borrowed)
    if left := [ref.name for ref in sources.values() if ref.name not in used]:
        raise UnsupportedError(f"{len(left)} tensors of the checkpoint have no place in {arch.name}: {_some(left)}")
    trimmed = {
        name: f"rows from {rows} on: beyond the vocabulary"
        for name, rows in used.items()
        if rows < checkpoint.tensors[name].rows
    }
    may_be = {sources[name].name for rule in arch.rules if rule.trim for name in _sources(rule) if name in sources}
    assert trimmed.keys() <= may_be, "rules leave rows out"
    ordered = sorted(made.values(), key=lambda output: _order(output.name))
    return Layout(tuple(ordered), tuple(sorted((reasons | trimmed).items())))


def _absent_as_a_whole(arch: Architecture, config: Config, block: int, rule: Rule, present: set[int]) -> bool:
    """Whether a rule is of a block beyond the config's layers of which the checkpoint has nothing."""
    if arch.part != "text" or block < n_layer(config):
        return False
    return f"layers.{block}." in _sources(rule)[0] and block not in present


def _blocks(arch: Architecture, config: Config) -> int:
    return arch.blocks(config) if arch.blocks else n_layer(config)


def _layer(name: str) -> int:
    """The number of the block that a checkpoint tensor is of; -1 for one of none."""
    found = re.search(r"(?:^|\.)layers\.(\d{1,9})\.", name)
    return int(found[1]) if found else -1


def _drop_reason(drops: tuple[Drop, ...], name: str) -> str | None:
    return next((drop.reason for drop in drops if fnmatchcase(name, drop.pattern)), None)


def without_prefixes(arch: Architecture, tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """Tensors by the names that rules use. A composite model's text part and a bare model without its head differ from
    the plain model in prefixes only."""
    sources: dict[str, TensorRef] = {}
    for name, ref in tensors.items():
        short = _short(arch, name)
        if short in sources:
            raise InputError(f"the checkpoint holds both {sources[short].name} and {name}, which are the same tensor")
        sources[short] = ref
    return sources


def number_names(arch: Architecture, config: Config) -> list[str]:
    """The tensors that `Architecture.numbers` names, key by key, block by block."""
    return [name.replace("{i}", str(i)) for _, name in arch.numbers for i in range(n_layer(config))]


def _short(arch: Architecture, name: str) -> str:
    while prefix := next((prefix for prefix in arch.prefixes if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def _per_block(arch: Architecture, config: Config) -> Iterator[tuple[Rule, Config]]:
    """The rules with `{i}` filled in for every block that has them, and each rule with a bias followed by the bias's
    own; with the config that says which block it is."""
    blocks = _blocks(arch, config)
    layers = n_layer(config) if arch.part == "text" else blocks
    numbered = [{**config, LAYER: i} for i in range(blocks)]
    for rule in arch.rules:
        for i in range(blocks if "{i}" in rule.to else 1):
            if rule.where is not None and not rule.where(config, i):
                continue
            number = rule.renumber(config, i) if rule.renumber else i
            named = ((name.replace("{i}", str(number)), str(i - layers)) for name in _sources(rule))
            sources = tuple(name.replace("{m}", further) for name, further in named)
            to = rule.to.replace("{i}", str(i))
            yield replace(rule, source=sources, to=to), numbered[i]
            if rule.bias:
                sources = tuple(_bias(name) for name in sources)
                shape = rule.shape.split()[0]
                yield replace(rule, source=sources, to=_bias(to), shape=shape, makes="", optional=True), numbered[i]


def _sources(rule: Rule) -> tuple[str, ...]:
    return (rule.source,) if isinstance(rule.source, str) else rule.source


def _bias(name: str) -> str:
    return name.removesuffix(".weight") + ".bias"


def _output(arch: Architecture, rule: Rule, config: Config, sources: Mapping[str, TensorRef]) -> Output | None:
    """The rule's output, or None if its source is not in the checkpoint."""
    names = _sources(rule)
    stacked = any("{e}" in name for name in names)
    if names[0].replace("{e}", "0") not in sources:
        return None
    if stacked:
        count = rule.stack(config) if rule.stack else n_expert(config)
        names = tuple(name.replace("{e}", str(e)) for e in range(count) for name in names)
    if absent := [name for name in names if name not in sources]:
        what = "experts" if stacked and rule.stack is None else "tensors"
        raise InputError(f"the checkpoint lacks {len(absent)} of {len(names)} {what} of {rule.to}: {_some(absent)}")
    found = [pieces_of(arch, rule, sources[name], config) for name in names]
    shape = _together([shape for _, shape in found], stacked, bool(rule.makes))
    pieces = tuple(piece for several, _ in found for piece in several)
    return Output(rule.to, shape, pieces, float32=rule.float32 or keeps_float32(rule.to, shape))


def _together(shapes: list[tuple[int, ...]], stacked: bool, made: bool) -> tuple[int, ...]:
    """A stack of them; of several that are no experts, one below the other."""
    first = shapes[0]
    if stacked:
        return (len(shapes), *first)
    if len(shapes) == 1:
        return first
    assert made or len(first) > 1, "several vectors need `makes`"
    return (len(shapes) * first[0], *first[1:])


def _used_rows(made: Mapping[str, Output], borrowed: set[str]) -> dict[str, int]:
    """Rows used of each checkpoint tensor, by its name: from the first on, each once. What a solid piece is made of
    may be used by others too (a fused vector, of which each takes some elements); a borrowed tensor counts as whole."""
    runs: dict[str, list[tuple[int, int, bool]]] = {}
    for output in made.values():
        for piece in output.pieces:
            runs.setdefault(piece.source.name, []).append((piece.first, piece.source_rows, bool(piece.read)))
    used: dict[str, int] = {}
    for name, pieces in runs.items():
        if name in borrowed:
            used[name] = max(
                piece.source.rows for o in made.values() for piece in o.pieces if piece.source.name == name
            )
            continue
        end = 0
        for first, rows, shared in sorted(pieces):
            assert first == end or (shared and first < end), f"rules use row {min(first, end)} of {name} twice or never"
            end = max(end, first + rows)
        used[name] = end
    return used


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _order(name: str) -> tuple[int, str]:
    block = name.split(".")[1] if name.startswith("blk.") else "-1"
    return int(block), name
