"""From a checkpoint's tokenizer files to a Vocab: which kind of vocabulary, and what its family adds.

Kinds, tried in the order that an architecture names; one whose files are absent is passed over:

- "spm": tokenizer.model, a SentencePiece model
- "gemma": "spm", and no space is put in front of the text
- "gemma4": a tokenizer.json as "llama_hf" takes it, joined by its merges
- "phi3": "spm" with Phi-3's own rule for added tokens; passed over for Phi-4's GPT-2 tokenizer
- "internlm2" and "internlm3": "spm", and a turn's end is what a chat model stops at
- "llama_hf": tokenizer.json of a Llama without tokenizer.model: BPE with byte fallback
- "bpe": byte-level BPE, tokenizer.json or vocab.json with merges.txt
- "roberta": "bpe", and the number of token types
- "bpe_cls": "bpe" of a BERT: bos, eos and sep are added unless the files say otherwise
- "tekken": Mistral's tekken.json, where there is no tokenizer.json
- "wpm": WordPiece, tokenizer.json or vocab.txt
- "ugm": a unigram model, tokenizer.model, spiece.model or tokenizer.json
- "xlmr": XLM-RoBERTa's, sentencepiece.bpe.model or tokenizer.json
- "unigram": the same, tokenizer.json alone
- "rwkv": rwkv_vocab_v20230424.txt
- "glm", "glm4", "hunyuan": "bpe", and which tokens begin and end texts and turns
- "kimi": tiktoken.model, byte-level BPE by ranks

llama.cpp's converters in these terms: Llama, Mistral, Mixtral, Granite, SmolLM3 are ("tekken", "spm", "llama_hf",
"bpe"), Qwen2 and Qwen3 ("spm", "bpe"), Gemma 2 ("gemma",), Gemma 3 ("gemma", "bpe"), Phi-3 ("phi3", "bpe"), Qwen-MoE
and OLMo-2 ("bpe",). "llama_hf" belongs to the Llama family alone, and brings along what else that family writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import InputError, UsageError
from ggufround.gguf_file import Field, Kind, boolean, u32
from ggufround.tokenizer.bpe import ADD_BOS, TOKENS, load_bpe, load_gemma4, load_llama_hf
from ggufround.tokenizer.files import Files, read_files
from ggufround.tokenizer.internlm import load_internlm2, load_internlm3
from ggufround.tokenizer.pretokenizers import check_name
from ggufround.tokenizer.roles import load_glm, load_glm4, load_hunyuan
from ggufround.tokenizer.rwkv import load_rwkv
from ggufround.tokenizer.spec import Vocab
from ggufround.tokenizer.special import TOKEN_TYPES, special_fields
from ggufround.tokenizer.spm import ADD_SPACE_PREFIX, load_gemma, load_phi3, load_spm
from ggufround.tokenizer.tekken import load_tekken
from ggufround.tokenizer.tiktoken import load_kimi
from ggufround.tokenizer.unigram import load_ugm, load_unigram, load_xlmr
from ggufround.tokenizer.wordpiece import load_wpm

Loader = Callable[[Files, str | None, int | None], Vocab | None]
KINDS: dict[str, Loader] = {
    "spm": lambda files, pre, size: load_spm(files, size),
    "gemma": lambda files, pre, size: load_gemma(files, size),
    "gemma4": lambda files, pre, size: load_gemma4(files, size),
    "phi3": lambda files, pre, size: load_phi3(files, size),
    "internlm2": lambda files, pre, size: load_internlm2(files, size),
    "internlm3": lambda files, pre, size: load_internlm3(files, size),
    "llama_hf": lambda files, pre, size: load_llama_hf(files, size),
    "bpe": load_bpe,
    "roberta": lambda files, pre, size: _roberta(files, load_bpe(files, pre, size)),
    "bpe_cls": lambda files, pre, size: _around(load_bpe(files, pre, size)),
    "tekken": lambda files, pre, size: load_tekken(files, size),
    "wpm": lambda files, pre, size: load_wpm(files, size),
    "ugm": lambda files, pre, size: load_ugm(files, size),
    "xlmr": lambda files, pre, size: load_xlmr(files, size),
    "unigram": lambda files, pre, size: load_unigram(files, size),
    "rwkv": lambda files, pre, size: load_rwkv(files, size),
    "glm": load_glm,
    "glm4": load_glm4,
    "hunyuan": load_hunyuan,
    "kimi": load_kimi,
}
NEEDED = {
    "wpm": "a WordPiece tokenizer.json or vocab.txt",
    "ugm": "spiece.model or a Unigram tokenizer.json",
    "xlmr": "sentencepiece.bpe.model or a Unigram tokenizer.json",
    "unigram": "a Unigram tokenizer.json",
    "rwkv": "rwkv_vocab_v20230424.txt",
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
    found = ((kind, KINDS[kind](files, pre, vocab_size)) for kind in order)
    kind, vocab = next(((kind, vocab) for kind, vocab in found if vocab is not None), ("", None))
    if vocab is None:
        needed = dict.fromkeys(NEEDED.get(kind, "tokenizer.model or tokenizer.json") for kind in order)
        raise InputError(
            f"{checkpoint.source} has no tokenizer: {' or '.join(needed)} is needed "
            f"(found {', '.join(sorted(checkpoint.files)) or 'no file beside the weights'})"
        )
    if pre is not None and (vocab.model != "gpt2" or kind == "tekken"):
        what = {"llama": "a SentencePiece", "bert": "a WordPiece", "t5": "a unigram"}.get(vocab.model, "this")
        raise UsageError(f"--pre {pre}: {what} vocabulary has no pre-tokenizer to choose; leave --pre out")
    fields = _llama(files, vocab, vocab_size) if "llama_hf" in order and kind != "tekken" else vocab.metadata
    vocab = replace(vocab, metadata=fields)
    _check_text(vocab, checkpoint.source)
    _check_unique(vocab.metadata[TOKENS].value, checkpoint.source)
    return vocab


def _roberta(files: Files, vocab: Vocab | None) -> Vocab | None:
    """What is around a text is known from tokenizer.json; without one, it is what RobertaTokenizer has."""
    vocab = _around(vocab) if files.tokenizer is None else vocab
    count = {TOKEN_TYPES: u32(files.token_types)}
    return None if vocab is None else replace(vocab, metadata={**vocab.metadata, **count})


def _around(vocab: Vocab | None) -> Vocab | None:
    around = {f"tokenizer.ggml.add_{kind}_token": boolean(True) for kind in ("bos", "eos", "sep")}
    return None if vocab is None else replace(vocab, metadata={**around, **vocab.metadata})


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
