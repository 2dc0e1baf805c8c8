"""What per-token figures come to: means with standard errors, quantiles, figures for every chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, sqrt
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Scored = Literal["half", "all"]  # the second half of each chunk, or all of it
QUANTILES = {"50 %": 0.5, "90 %": 0.9, "95 %": 0.95, "99 %": 0.99, "99.9 %": 0.999, "max": 1.0}


class Estimate(NamedTuple):
    """A mean and its standard error: over tokens as if they were independent, and over chunks (None for one chunk),
    which holds whatever tokens of a chunk have in common."""

    mean: float
    error: float | None
    token_error: float | None


class Chunk(NamedTuple):
    """Means over one chunk's scored tokens: paired comparisons of files need them."""

    loss: float  # -log-probability of the token that came, in nats
    reference_loss: float
    divergence: float
    same_top: float


@dataclass(frozen=True)
class Evaluation:
    """A file beside the reference. Probabilities are natural logarithms, divergences in nats, KL(reference || file)."""

    name: str
    context: int
    chunks: int
    tokens: int  # scored
    scored: Scored
    perplexity: float
    reference_perplexity: float
    loss: Estimate
    reference_loss: Estimate
    log_prob_change: Estimate  # file less reference, of the token that came: below zero is worse
    divergence: Estimate
    quantiles: Mapping[str, float]  # of the divergence over tokens
    same_top: Estimate  # share of tokens for which both think the same one most probable
    per_chunk: tuple[Chunk, ...]
    seconds: float  # of the whole run, all files and the reference
    peak_memory: int  # of the process so far, bytes
    size: int | None = None  # bytes of the file
    bits_per_weight: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tokens:
    """Per scored token, each float64 [chunks, positions]; `same_top` is 0 or 1."""

    log_probs: F64
    reference_log_probs: F64
    divergence: F64
    same_top: F64


def estimate(values: F64) -> Estimate:
    """Of values [chunks, positions]."""
    return Estimate(float(values.mean()), _error(values.mean(1)), _error(values.reshape(-1)))


def _error(values: F64) -> float | None:
    return float(values.std(ddof=1)) / sqrt(len(values)) if len(values) > 1 else None


def summarize(
    name: str, tokens: Tokens, context: int, scored: Scored, seconds: float = 0.0, peak_memory: int = 0
) -> Evaluation:
    """The figures of one file."""
    loss, reference = estimate(-tokens.log_probs), estimate(-tokens.reference_log_probs)
    columns = (-tokens.log_probs, -tokens.reference_log_probs, tokens.divergence, tokens.same_top)
    return Evaluation(
        name=name,
        context=context,
        chunks=len(tokens.divergence),
        tokens=tokens.divergence.size,
        scored=scored,
        perplexity=exp(min(loss.mean, 700.0)),
        reference_perplexity=exp(min(reference.mean, 700.0)),
        loss=loss,
        reference_loss=reference,
        log_prob_change=estimate(tokens.log_probs - tokens.reference_log_probs),
        divergence=estimate(tokens.divergence),
        quantiles={key: float(np.quantile(tokens.divergence, q)) for key, q in QUANTILES.items()},
        same_top=estimate(tokens.same_top),
        per_chunk=tuple(Chunk(*map(float, row)) for row in zip(*(c.mean(1) for c in columns), strict=True)),
        seconds=seconds,
        peak_memory=peak_memory,
    )


def paired(first: Sequence[Chunk], second: Sequence[Chunk], key: str = "divergence") -> Estimate:
    """Mean of `second` less `first` over the same chunks, with the standard error of that difference."""
    differences = np.array([getattr(b, key) - getattr(a, key) for a, b in zip(first, second, strict=True)])
    return Estimate(float(differences.mean()), _error(differences), None)
