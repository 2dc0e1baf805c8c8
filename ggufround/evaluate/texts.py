"""A text as chunks of token ids, the same that llama.cpp's perplexity tool makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import InputError, UsageError
from ggufround.tune.text_tokens import open_tokenizer

SHORTEST = 8  # tokens of a chunk


def read_chunks(text: Path, checkpoint: Checkpoint, context: int = 512, most: int | None = None) -> NDArray[np.int64]:
    """Token ids [chunks, context] of a text file, cut as llama.cpp's perplexity tool cuts it.

    The text is tokenized as a whole, with a bos before it if the model is used with one; a bos also takes the place of
    each chunk's first token; tokens that fill no chunk are left out. Unlike llama.cpp's tool, markers of special tokens
    within the text count as such. Raises UsageError for a context or number below what makes sense, InputError for a
    text that cannot be read or is shorter than a chunk.
    """
    if context < SHORTEST or (most is not None and most < 1):
        count = "all" if most is None else most
        raise UsageError(f"{count} chunks of {context} tokens: at least 1 of {SHORTEST} is needed")
    try:
        content = text.read_bytes().decode()
    except OSError as error:
        raise InputError(f"cannot read {text}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{text} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    tokenizer = open_tokenizer(checkpoint)
    bos = [] if tokenizer.bos is None else [tokenizer.bos]
    ids = np.array([*bos, *tokenizer.encode(content)], np.int64)
    count = len(ids) // context
    if not count:
        raise InputError(f"{text} is too short: {len(ids)} tokens, at least {context} are needed for one chunk")
    chunks = ids[: count * context].reshape(count, context)[:most]
    if bos:
        chunks[:, 0] = bos
    return chunks
