"""From a checkpoint's tokenizer files to a Vocab: which kind of vocabulary, and what its family adds.

Kinds, tried in the order that an architecture names; one whose files are absent is passed over:

- "spm": tokenizer.model, a SentencePiece model
- "gemma": "spm", and no space is put in front of the text
- "phi3": "spm" with Phi-3's own rule for added tokens; passed over for Phi-4's GPT-2 tokenizer
- "llama_hf": tokenizer.json of a Llama without tokenizer.model: BPE with byte fallback
- "bpe": byte-level BPE, tokenizer.json or vocab.json with merges.txt
- "glm", "glm4", "hunyuan": "bpe", and which tokens begin and end texts and turns
- "kimi": tiktoken.model, byte-level BPE by ranks

llama.cpp's converters in these terms: Llama, Mistral, Mixtral, Granite, SmolLM3 are ("spm", "llama_hf", "bpe"), Qwen2
and Qwen3 ("spm", "bpe"), Gemma 2 ("gemma",), Gemma 3 ("gemma", "bpe"), Phi-3 ("phi3", "bpe"), Qwen-MoE and OLMo-2
("bpe",). "llama_hf" belongs to the Llama family alone, and brings along what else that family writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import InputError, UsageError
from ggufround.gguf_file import Field, Kind, boolean
from ggufround.tokenizer.bpe import ADD_BOS, TOKENS, load_bpe, load_llama_hf
from ggufround.tokenizer.files import Files, read_files
from ggufround.tokenizer.pretokenizers import check_name
from ggufround.tokenizer.roles import load_glm, load_glm4, load_hunyuan
from ggufround.tokenizer.spec import Vocab
from ggufround.tokenizer.special import special_fields
from ggufround.tokenizer.spm import ADD_SPACE_PREFIX, load_gemma, load_phi3, load_spm
from ggufround.tokenizer.tiktoken import load_kimi

Loader = Callable[[Files, str | None, int | None], Vocab | None]
KINDS: dict[str, Loader] = {
    "spm": lambda files, pre, size: load_spm(files, size),
    "gemma": lambda files, pre, size: load_gemma(files, size),
    "phi3": lambda files, pre, size: load_phi3(files, size),
    "llama_hf": lambda files, pre, size: load_llama_hf(files, size),
    "bpe": load_bpe,
    "glm": load_glm,
    "glm4": load_glm4,
    "hunyuan": load_hunyuan,
    "kimi": load_kimi,
}
CODE_LLAMA, SMALL_GRANITE = 32016, 49152  # vocabulary sizes by which llama.cpp's converter tells these two


def load_vocab(
    checkpoint: Checkpoint,
    order: tuple[str, ...] = ("spm", "bpe"),
    pre: str | None = None,
    vocab_size: int | None = None,
) -> Vocab:
    """The vocabulary that llama.cpp's converter would write, and the user's `pre` in place of the pre-tokenizer found.

    `order` names kinds (see above); `vocab_size` is the number of rows of the embedding, up to which missing ids are
    padded with unused tokens (default: the config's vocab_size, else what the files hold).

    Raises InputError for damaged or missing files and for ids beyond `vocab_size`, UnsupportedError for a
    pre-tokenizer that llama.cpp has not, UsageError for a `pre` that it does not know.
    """
    assert set(order) <= KINDS.keys(), order
    if pre is not None:
        check_name(pre)
    files = read_files(checkpoint)
    if vocab_size is None:
        size = checkpoint.config.get("vocab_size")
        vocab_size = size if isinstance(size, int) else None
    found = (KINDS[kind](files, pre, vocab_size) for kind in order)
    vocab = next((vocab for vocab in found if vocab is not None), None)
    if vocab is None:
        raise InputError(
            f"{checkpoint.source} has no tokenizer: tokenizer.model or tokenizer.json is needed "
            f"(found {', '.join(sorted(checkpoint.files)) or 'no file beside the weights'})"
        )
    if pre is not None and vocab.model != "gpt2":
        raise UsageError(f"--pre {pre}: a SentencePiece vocabulary has no pre-tokenizer; leave --pre out")
    fields = _llama(files, vocab, vocab_size) if "llama_hf" in order else vocab.metadata
    vocab = replace(vocab, metadata=fields)
    _check_text(vocab, checkpoint.source)
    _check_unique(vocab.metadata[TOKENS].value, checkpoint.source)
    return vocab


def _llama(files: Files, vocab: Vocab, vocab_size: int | None) -> dict[str, Field]:
    """What llama.cpp's Llama class writes around any vocabulary: the prefix space as tokenizer_config.json has it,
    CodeLlama's end of turn, and no bos for small Granite and SmolLM models."""
    prefix = (files.config or {}).get("add_prefix_space")
    fields = {} if prefix is None else {ADD_SPACE_PREFIX: boolean(bool(prefix))}
    fields |= vocab.metadata
    if vocab_size == CODE_LLAMA:
        fields |= special_fields(files, preset={"eot": 32010}, types=("prefix", "suffix", "middle", "eot"))
    if vocab_size == SMALL_GRANITE:
        fields |= {ADD_BOS: boolean(False)}
    return fields


def _check_text(vocab: Vocab, source: str) -> None:
    """A lone surrogate, which JSON can spell, is no text that a GGUF file could hold."""
    for key, field in vocab.metadata.items():
        texts = field.value if field.item == Kind.STRING else [field.value] if field.kind == Kind.STRING else []
        try:
            "".join(texts).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{source}: {key} holds a lone surrogate, which is not Unicode text") from error


def _check_unique(tokens: list[str], source: str) -> None:
    """llama.cpp aborts the whole process on a vocabulary that holds a text twice."""
    if len(set(tokens)) == len(tokens):
        return
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if (first := seen.setdefault(token, number)) != number:
            raise InputError(
                f"{source}: the tokens {first} and {number} have the same text {token!r}, and llama.cpp cannot load "
                "such a vocabulary; correct the tokenizer's added tokens"
            )
