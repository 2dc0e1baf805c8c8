"""Which tensor gets which type: llama-quantize's choice, as a pure function of names, shapes and a few numbers.

The two-step flow decides twice: the converter stores norms, biases and a few small matrices in F32 whatever is asked
for, then llama-quantize leaves another list of tensors as it finds them and types the rest. `assign` applies both
lists. A tensor that llama-quantize leaves alone keeps the type of the intermediate file, which here is the
checkpoint's own: BF16 and F16 stay, a GGUF source's type stays, all else is F32.

Order matters, since "the first eighth of ffn_down" is counted: `visiting_order` is llama.cpp's, and also the order of
the tensors in the file. Source: llama.cpp's src/llama-quant.cpp; the rules themselves stand in `mix_rules`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ggufround.errors import InputError, UsageError
from ggufround.ggml_types import GGML_TYPES
from ggufround.quants.mix_rules import FALLBACKS, MIXES, Mix, ModelFacts, Role, Scene, role_of

__all__ = [
    "FLOATS", "MIXES", "Choice", "Mix", "ModelFacts", "Overrides", "TensorInfo",
    "assign", "fitted", "missing_types", "mix", "needs_imatrix", "tensor_types", "type_name", "visiting_order",
]  # fmt: skip

FLOATS = ("F32", "F16", "BF16")
# Weights in a block of each type that a matrix may have: not integers, F64, and the types of activations.
_NEVER = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")
BLOCKS = {kind.name: kind.block for kind in GGML_TYPES.values() if kind.name not in _NEVER}
# Tensors that llama-quantize never touches; searched in the name (tensor_allows_quantization).
_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj|ssm_conv1d"
    r"|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight|attn_rel_b\.weight"
    r"|time_mix_(first|[wva][012]|g[12]|decay_w[12]|lerp_fused)\.weight|\.position_embd|sam\.pos_embd|sam\.neck\."
    r"|sam\.net_|\.rel_pos|\.patch_embd|\.patch_merger|a\.rvq\.codebook|mm\.a\.code_embd"
    r"|^position_embd\.weight$|^token_types\.weight$"
)
_KEPT_GLM5_NEXT = re.compile(
    r"hc_|indexer\.attn_q_b|indexer\.attn_k|indexer\.proj|indexer_compressor_(gate|ape)"
    r"|ssm_([fg]_[ab]|beta)\.weight|attn_kv_a_mqa\.weight|attn_[kv]_b\.weight"
)
_Q8_GLM5_NEXT = re.compile(r"attn_q_[ab]|nextn\.eh_proj")
_LAYER = re.compile(r"blk\.\s*([+-]?\d+)")  # as sscanf reads "blk.%d."
_NEEDS_IMATRIX = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor before it has a type. `source_type` is the checkpoint's ("BF16") or a ggml type's name ("Q8_0")."""

    name: str
    shape: tuple[int, ...]  # row-major
    source_type: str
    float32: bool = False  # llama.cpp's converter always stores it in F32
    hf_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Overrides:
    """The user's wishes, as llama-quantize's flags of the same names; types are ggml's names in capitals.

    A pattern of `tensor_types` is searched, in lower case, in the GGUF name, as llama-quantize does, and, as it was
    given, in the names of the checkpoint's tensors; the first that is found wins. llama-quantize ignores these
    patterns where the file type is F32, F16 or BF16; here they hold there too.
    """

    tensor_types: tuple[tuple[str, str], ...] = ()
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    leave_output_tensor: bool = False
    pure: bool = False


NO_OVERRIDES = Overrides()


@dataclass(frozen=True)
class Choice:
    type: str
    reason: str  # "kept", "default", "rule", "pure", or the flag that decided
    fallback_from: str | None = None  # the type whose block does not divide the row


_NAMES = {alias.upper(): row for row in MIXES.values() for alias in (row.name, *row.aliases)}
_IDS = {str(row.file_type): row for row in reversed(MIXES.values())}  # 38 is llama-quantize's, not ours


def mix(name: str) -> Mix:
    """The mix of that name, alias or llama-quantize number; upper or lower case. UsageError names the nearest."""
    found = _NAMES.get(name.upper()) or _IDS.get(name)
    if found is None:
        raise UsageError(f"Unknown type {name!r}. {_nearest(name, _NAMES)} See `ggufround list mixes`.")
    return found


def type_name(text: str) -> str:
    """The ggml type of that name, as it is written here (capitals). UsageError names the nearest."""
    if text.upper() not in BLOCKS:
        raise UsageError(f"Unknown tensor type {text!r}. {_nearest(text, BLOCKS)} See `ggufround list types`.")
    return text.upper()


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name.upper(), list(known), n=3, cutoff=0.5)
    return f"Nearest: {', '.join(near)}." if near else "No name is near."


def tensor_types(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """`PATTERN=TYPE` texts, checked, for Overrides; a file's contents are its words, split at white space."""
    result = []
    for text in texts:
        pattern, sign, kind = text.rpartition("=")
        if not (pattern and sign and kind):
            raise UsageError(f"{text!r} is no PATTERN=TYPE; for example 'ffn_down=q6_k'.")
        result.append((pattern, type_name(kind)))
        _compiled(pattern)
    return tuple(result)


def _compiled(pattern: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    try:
        return re.compile(pattern.lower()), re.compile(pattern)
    except re.error as error:
        message = f"{pattern!r} is no regular expression: {error}. Before a literal '(', '[' or '*' write '\\'."
        raise UsageError(message) from None


def visiting_order(names: Iterable[str]) -> list[str]:
    """Names as llama.cpp sorts them: those outside the layers first, then by layer, by name within a layer."""
    return sorted(names, key=lambda name: (_layer(name, -1), name))


def _layer(name: str, otherwise: int) -> int:
    found = _LAYER.match(name)
    return int(found[1]) if found else otherwise


def assign(
    mix: Mix,
    tensors: Sequence[TensorInfo],
    facts: ModelFacts,
    overrides: Overrides = NO_OVERRIDES,
    has_imatrix: bool = False,
) -> list[Choice]:
    """The type of every tensor of a model, in the order in which they were given.

    `tensors` must be all of them: the rules count tensors, and a model without `output.weight` uses its embedding as
    output. Raises UsageError for a pattern that is no regular expression, InputError for a tensor of a mixture of
    experts whose layer cannot be told.
    """
    patterns = [(*_compiled(pattern), kind) for pattern, kind in overrides.tensor_types]
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    values = sum(role_of(tensor.name) is Role.VALUE for tensor in tensors)
    seen: Counter[Role] = Counter()
    choices: dict[str, Choice] = {}
    by_name = {tensor.name: tensor for tensor in tensors}
    assert len(by_name) == len(tensors), "two tensors of one name"
    for name in visiting_order(by_name):
        tensor, role = by_name[name], role_of(name)
        manual = next((kind for gguf, hf, kind in patterns if _matches(tensor, gguf, hf)), None)
        if tensor.float32 or not _is_quantised(tensor, facts.arch, overrides):
            kept = tensor.source_type if tensor.source_type in BLOCKS and not tensor.float32 else "F32"
            widened = mix.type == "F32" and kept in FLOATS  # a file in F32 holds nothing else, as the converter's
            choices[name] = Choice("F32" if widened else kept, "kept")
            continue
        if role is Role.EMBEDDING and overrides.token_embedding_type and not (manual and name.startswith("per_layer_")):
            choice = Choice(overrides.token_embedding_type, "--token-embedding-type")
        elif role is Role.OUTPUT and overrides.output_tensor_type:
            choice = Choice(overrides.output_tensor_type, "--output-tensor-type")
        elif manual:
            choice = Choice(manual, "--tensor-type")
        elif mix.type in FLOATS:
            choice = Choice(mix.type, "default")
        elif overrides.pure:
            choice = Choice(mix.type, "pure")
        elif role is Role.OUTPUT or (role is Role.EMBEDDING and tied):
            choice = _output(mix, tensor, facts, overrides)
        elif facts.arch == "glm5-next" and _Q8_GLM5_NEXT.search(name):
            choice = Choice("Q8_0", "rule")
        else:
            scene = Scene(
                facts, role, _is_stacked(tensor), has_imatrix,
                i=_place(mix, name, role, facts, seen[role]), n=values if role is Role.VALUE else facts.n_layer,
            )  # fmt: skip
            choice = _by_rule(mix, scene)
            seen[role] += 1
        choices[name] = fitted(choice, tensor.shape[-1])
    return [choices[tensor.name] for tensor in tensors]


def _matches(tensor: TensorInfo, gguf: re.Pattern[str], hf: re.Pattern[str]) -> bool:
    return bool(gguf.search(tensor.name)) or any(hf.search(name) for name in tensor.hf_names)


def idle_patterns(tensors: Sequence[TensorInfo], arch: str, overrides: Overrides) -> list[str]:
    """Patterns of --tensor-type that match no tensor that gets a type: most likely mistyped."""
    typed = [t for t in tensors if not t.float32 and _is_quantised(t, arch, overrides)]
    return [p for p, _ in overrides.tensor_types if not any(_matches(t, *_compiled(p)) for t in typed)]


def _is_quantised(tensor: TensorInfo, arch: str, overrides: Overrides) -> bool:
    """Whether llama-quantize gives it a type at all. Leading dimensions of 1 do not count, as ggml counts none."""
    if all(size == 1 for size in tensor.shape[:-1]) or not tensor.name.endswith("weight"):
        return False
    if overrides.leave_output_tensor and tensor.name == "output.weight":
        return False
    if arch == "glm5-next" and _KEPT_GLM5_NEXT.search(tensor.name):
        return False
    return not _KEPT.search(tensor.name)


def _is_stacked(tensor: TensorInfo) -> bool:
    return len(tensor.shape) > 2 and tensor.shape[-3] > 1


def _output(mix: Mix, tensor: TensorInfo, facts: ModelFacts, overrides: Overrides) -> Choice:
    if overrides.output_tensor_type:  # of a tied embedding
        return Choice(overrides.output_tensor_type, "--output-tensor-type")
    fits = tensor.shape[-1] % BLOCKS[mix.type] == 0
    return Choice(mix.output if fits and facts.arch != "falcon" else "Q8_0", "rule")


def _place(mix: Mix, name: str, role: Role, facts: ModelFacts, seen: int) -> int:
    """The tensor's place in its role: counted, but the layer's number for the experts, which come in any order."""
    if facts.n_expert <= 1 or mix.by_count or role not in (Role.UP, Role.GATE, Role.DOWN):
        return seen
    layer = _layer(name, -1)
    if not 0 <= layer < facts.n_layer:
        raise InputError(
            f"Tensor {name!r} names no layer from 0 to {facts.n_layer - 1}, by which {mix.name} picks its type. "
            "Use --pure or --tensor-type."
        )
    return layer


def _by_rule(mix: Mix, scene: Scene) -> Choice:
    if scene.role is Role.EMBEDDING and mix.embedding:
        return Choice(mix.embedding, "rule")
    kind = next((rule.type for rule in mix.rules if rule.holds(scene)), mix.type)
    if scene.role is Role.VALUE and kind in ("Q3_K", "Q4_K") and mix.lifts_70b and scene.facts.is_70b:
        kind = "Q5_K"
    return Choice(kind, "default" if kind == mix.type else "rule")


def fitted(choice: Choice, columns: int) -> Choice:
    """The choice, or what stands in for it where its block does not divide the row; at last F16."""
    if columns % BLOCKS[choice.type] == 0:
        return choice
    kind = FALLBACKS.get(choice.type, choice.type)
    if columns % BLOCKS[kind]:
        kind = "F16"
    return Choice(kind, choice.reason, choice.type)


def needs_imatrix(mix: Mix, name: str, kind: str) -> bool:
    """Whether llama-quantize refuses to write tensor `name` in type `kind` without an importance matrix."""
    if role_of(name) in (Role.OUTPUT, Role.EMBEDDING):
        return False
    return kind in _NEEDS_IMATRIX or (kind == "Q2_K" and mix.name == "Q2_K_S")


def missing_types(choices: Iterable[Choice], available: Iterable[str]) -> list[str]:
    """The types, sorted, that were chosen and are not `available`: a file with these cannot be written yet."""
    return sorted({choice.type for choice in choices} - set(available))
