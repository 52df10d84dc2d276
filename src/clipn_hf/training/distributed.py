# Copyright 2026 The clipn-hf authors
# SPDX-License-Identifier: Apache-2.0
"""Rows gathered from all processes, with gradients that flow back to the process they came from.

Without gradients the loss is still right but what is learned is not: a process would only ever push its own texts away
from its own images. Processes may contribute different numbers of rows.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_counts(count: int, device: torch.device) -> list[int]:
    """Gather `count` of every process, in the order of their ranks; `[count]` where there is one process."""
    if not (dist.is_available() and dist.is_initialized()):
        return [count]
    counts = torch.empty(dist.get_world_size(), dtype=torch.int64, device=device)
    dist.all_gather(list(counts.split(1)), torch.tensor([count], device=device))
    return counts.tolist()


def gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """Gather the rows of all processes, in the order of their ranks.

    Differentiable: the gradient of a row is the sum of what all processes derive for it. Where the losses of the
    processes add up to one loss, each process so receives the gradient of that one loss.

    Args:
        rows (`torch.Tensor` of shape `(counts[rank], ...)`):
            The rows of this process, of any dtype. All dimensions but the first are the same on all processes.
        counts (`list[int]`): Numbers of rows of all processes, see [`gather_counts`].

    Returns:
        `torch.Tensor` of shape `(sum(counts), ...)`: `rows` itself where there is one process.
    """
    return rows if len(counts) == 1 else _GatherRows.apply(rows, counts)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        # Collectives of equal size work with every backend.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # A reduce-scatter would do, but it needs parts of equal size.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.split(ctx.counts)[dist.get_rank()], None
