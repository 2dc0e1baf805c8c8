"""Causal attention for the CPU, where gradients flow: a few tall matrix products instead of torch's fused kernel.

torch's flash attention keeps nothing but sums and computes the scores again on the way back, in tiles of the size that
suits a cache. At the lengths that blocks are tuned on, the scores of a micro-batch are a few megabytes; to keep them,
and to give all query heads that share a key head to one product, takes a third to two thirds of its time. Queries go
in strips; each needs the keys up to its own last one and no others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LONGEST = 2048  # tokens; beyond, the kept scores would be large and the fused kernel is as fast
STRIP = 64  # queries, and at least a sixteenth of all
NAME = "ggufround"


def kept_bytes(sequences: int, heads: int, tokens: int) -> int:
    """What a backward pass keeps of a block's scores, in float32."""
    return 4 * sequences * heads * tokens * (tokens + _strip(tokens)) // 2 if tokens <= LONGEST else 0


def register() -> str:
    """Makes `attend` known to transformers; returns the name for attn_implementation."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' "sdpa", faster where it can be: query [b, heads, s, d], key and value [b, key heads, s, ...];
    returns [b, s, heads, d of value]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    length = query.shape[2]
    if (
        causal
        and attention_mask is None
        and not dropout
        and others.get("position_bias") is None
        and query.device.type == "cpu"
        and torch.is_grad_enabled()
        and any(x.requires_grad for x in (query, key, value))
        and 1 < length == key.shape[2] <= LONGEST
    ):
        if torch.is_autocast_enabled("cpu"):
            kind = torch.get_autocast_dtype("cpu")
            query, key, value = query.to(kind), key.to(kind), value.to(kind)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        found: Tensor = _Strips.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
        return found, None
    out, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **others
    )
    return out, None


class _Strips(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        b, heads, length, width = query.shape
        shared, wide = key.shape[1], value.shape[-1]
        query = query.reshape(b * shared, heads // shared, length, width)
        key, value = key.reshape(b * shared, length, width), value.reshape(b * shared, length, wide)
        out = query.new_empty(b, length, heads, wide)
        by_head = out.view(b, length, shared, -1, wide).permute(0, 2, 3, 1, 4)
        future = query.new_full((_strip(length),) * 2, -torch.inf).triu(1)
        kept = []
        for first, last in _strips(length):
            scores = torch.baddbmm(
                query.new_empty(()), query[:, :, first:last].reshape(b * shared, -1, width), key[:, :last].mT,
                beta=0, alpha=scale,
            )  # fmt: skip
            scores = scores.view(b * shared, -1, last - first, last)
            scores[..., first:] += future[: last - first, : last - first]
            shares = torch.softmax(scores, -1)
            strip = torch.bmm(shares.view(b * shared, -1, last), value[:, :last])
            by_head[..., first:last, :] = strip.view(b, shared, -1, last - first, wide)
            kept.append(shares)
        ctx.scale = scale
        ctx.save_for_backward(query, key, value, out, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, out, *kept = ctx.saved_tensors
        groups, each, length, width = query.shape
        b, _, heads, wide = out.shape
        shared = heads // each

        def grouped(x: Tensor) -> Tensor:
            return x.reshape(b, length, shared, each, -1).permute(0, 2, 3, 1, 4).reshape(groups, each, length, -1)

        by_out = grouped(slopes[0])
        along = grouped((slopes[0].float() * out.float()).sum(-1, keepdim=True)).to(query.dtype)
        by_query = torch.empty_like(query)
        by_key, by_value = (torch.zeros(x.shape, dtype=torch.float32) for x in (key, value))
        for (first, last), shares in zip(_strips(length), kept, strict=True):
            flat = shares.view(groups, -1, last)
            slope = by_out[:, :, first:last].reshape(groups, -1, wide)
            by_value[:, :last] += torch.bmm(flat.mT, slope)
            by_scores = torch.bmm(slope, value[:, :last].mT).view_as(shares)
            by_scores.sub_(along[:, :, first:last]).mul_(shares)
            by_scores = by_scores.view_as(flat)
            by_query[:, :, first:last] = torch.bmm(by_scores, key[:, :last]).view(groups, each, -1, width)
            by_key[:, :last] += torch.bmm(by_scores.mT, query[:, :, first:last].reshape(groups, -1, width))
        return (
            by_query.mul_(ctx.scale).view(b, heads, length, width),
            by_key.mul_(ctx.scale).to(key.dtype).view(b, shared, length, width),
            by_value.to(value.dtype).view(b, shared, length, wide),
            None,
        )


def _strip(length: int) -> int:
    return min(length, max(STRIP, length // 16))


def _strips(length: int) -> list[tuple[int, int]]:
    step = _strip(length)
    return [(first, min(first + step, length)) for first in range(0, length, step)]
