"""Tiny random checkpoints of every architecture, as transformers saves them: the cases of `tiny_cases`, by name."""

from __future__ import annotations

import re
from pathlib import Path

from ggufround.arch import find_architecture
from tiny_cases import MODULES
from tiny_parts import EMBD as EMBD
from tiny_parts import FF as FF
from tiny_parts import LAYERS as LAYERS
from tiny_parts import VOCAB as VOCAB
from tiny_parts import Tiny as Tiny
from tiny_parts import bpe_tokenizer as bpe_tokenizer
from tiny_parts import config as config
from tiny_parts import experts as experts
from tiny_parts import llama_like as llama_like
from tiny_parts import spm_model as spm_model
from tiny_parts import weight as weight
from tiny_parts import weights as weights
from tiny_parts import write as write

CASES = {case.name: case for module in MODULES for case in module.CASES}
# Cases of projectors alone: their text models are converted as others.
PROJECTORS = {case.name: case for module in MODULES for case in getattr(module, "PROJECTORS", ())}
FOREIGN = ("internvl_chat",)  # model types that transformers does not know, so that the tuner refuses them
RUN = {name: case for name, case in CASES.items() if case.loads or case.proof != "loads"}  # by transformers
# transformers, with which models are tuned, wants a model_type.
TUNABLE = sorted(
    name
    for name, case in RUN.items()
    if case.config.get("model_type", FOREIGN[0]) not in FOREIGN and not find_architecture(case.config).untunable
)


OTHER_PARTS = ("vision", "visual", "projector", "multi_modal", "connector", "mlp1", "image", "audio")


def of_text(name: str, case: Tiny) -> bool:
    """Whether a checkpoint's tensor is one of the text model that predicts the next token."""
    return not name.startswith(("mtp.", *case.unread)) and not any(part in name for part in OTHER_PARTS)


def text_name(name: str) -> str:
    """The tensor's name in the bare text model, whatever stands before it in a composite one."""
    return re.sub(r"^(thinker\.)?(backbone\.|model\.)?(language_model\.|text_model\.)?(model\.)?", "", name)


def wide() -> Tiny:
    """A Llama whose rows are as long as a block of the K-quants, and whose matrices are tiles of 128."""
    sizes = {EMBD: 256, FF: 256, 64: 128}
    shapes = {n: tuple(sizes.get(k, k) for k in s) for n, s in llama_like().items()}
    return Tiny("wide", config("LlamaForCausalLM", "llama", hidden_size=256, intermediate_size=256), shapes)


ALL = CASES | {"wide": wide()}


def written(folder: Path, name: str) -> Path:
    """The checkpoint of that name in `folder`, written if it is not there."""
    path = folder / name
    return path if path.exists() else write(ALL[name], path)
