"""Multi-scale deformable attention (Deformable DETR, arXiv:2010.04159) for inference, without custom kernels.

Each query of each head combines a few points of each level of a feature pyramid, and each point four cells (bilinear
interpolation, `align_corners=False`, zeros outside). transformers uses one `grid_sample` per level, whose intermediate
results are sixteen times the size of the output. Here all cells of a query, 4 corners x levels x points, are one bag of
a weighted `embedding_bag`: gathering, interpolation and attention are one kernel that writes nothing but the output. A
border of zeros around each level replaces tests for points outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn.functional import embedding_bag

Size = tuple[int, int]  # cells: height, width
# Queries per chunk: on a GPU; on one thread of a CPU, whose indices and weights then fit in the second-level cache; and
# for each of several threads, which synchronize after every operation, so that larger chunks are faster.
_GPU_CHUNK, _CACHED_CHUNK, _THREAD_CHUNK = 1 << 16, 512, 4096


@dataclass(frozen=True)
class SamplingLayout:
    """Layout of a pyramid's cells in the table of `pad_levels`, for each column (head, level, point) of a query.

    Tensors are float32 `[columns]` unless noted otherwise; sums of them are whole numbers below 2**24, hence exact.
    """

    sizes: tuple[Size, ...]
    starts: tuple[int, ...]  # table rows before each level
    rows: int  # of the whole table
    last: int  # the last entry whose four cells are all in the table
    origin: torch.Tensor  # the table entry of cell (0, 0)
    down: torch.Tensor  # offset of the cell below
    across: int  # offset of the cell to the right
    limits: torch.Tensor  # [2, columns]: width, then height
    edges: torch.Tensor  # [levels, 2]: width and height
    level_columns: torch.Tensor  # [levels, columns]: 1 where the column is of the level, else 0


@lru_cache(maxsize=32)
def build_layout(sizes: tuple[Size, ...], heads: int, points: int, device: torch.device) -> SamplingLayout:
    """Build the layout of a pyramid with levels of these sizes; a table entry is one head's part of one cell."""
    starts, rows = [], 0
    for height, width in sizes:
        starts.append(rows)
        rows += (height + 2) * (
            width + 1
        )  # a row of zeros above and below; the column at the left closes the row before
    rows += sizes[-1][1] + 3  # a point beyond the last corner reaches one row and one cell further, with weight 0
    if rows * heads >= 1 << 24:
        raise ValueError(f"a pyramid of {sizes} has too many cells for exact indices in float32")

    def columns(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32).view(1, -1, 1).expand(heads, -1, points)

    corner = columns([start + width + 2 for start, (_, width) in zip(starts, sizes, strict=True)]) * heads
    return SamplingLayout(
        sizes,
        tuple(starts),
        rows,
        last=(rows - sizes[-1][1] - 3) * heads - 1,
        origin=(corner + torch.arange(heads).view(-1, 1, 1)).reshape(-1).to(device),
        down=(columns([width + 1 for _, width in sizes]) * heads).reshape(-1).to(device),
        across=heads,
        limits=torch.stack([columns([size[axis] for size in sizes]).reshape(-1) for axis in (1, 0)]).to(device),
        edges=torch.tensor([size[::-1] for size in sizes], dtype=torch.float32).to(device),
        level_columns=torch.stack([columns(row).reshape(-1) for row in torch.eye(len(sizes)).tolist()]).to(device),
    )


def pad_levels(value: torch.Tensor, layout: SamplingLayout, heads: int) -> torch.Tensor:
    """Convert cells `[B, S, C]` of all levels to a table `[B, rows * heads, C / heads]`, float32, with zero borders."""
    batch, _, channels = value.shape
    table = torch.zeros((batch, layout.rows, channels), dtype=torch.float32, device=value.device)
    begin = 0
    for start, (height, width) in zip(layout.starts, layout.sizes, strict=True):
        padded = table[:, start : start + (height + 2) * (width + 1)].view(batch, height + 2, width + 1, channels)
        padded[:, 1:-1, 1:] = value[:, begin : begin + height * width].view(batch, height, width, channels)
        begin += height * width
    return table.view(batch, layout.rows * heads, channels // heads)


def sample_values(
    table: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor, layout: SamplingLayout, heads: int
) -> torch.Tensor:
    """Compute each query's weighted sum of its points, `[Q, C]` float32.

    Args:
        table: `[rows * heads, C / heads]` of one image.
        positions: `[Q, 2, columns]` float32: x, then y, of each point in cells; 0 is the first cell's center. They are
            overwritten.
        weights: `[Q, columns]` float32.
        layout: of the table.
        heads: number of attention heads.
    """
    queries, columns = weights.shape
    output = torch.empty((queries, heads, table.shape[1]), dtype=table.dtype, device=table.device)
    step = chunk_size(table.device)
    entries = torch.empty((min(step, queries), heads, 4, columns // heads), dtype=torch.int32, device=table.device)
    shares = torch.empty_like(entries, dtype=torch.float32)
    for start in range(0, queries, step):
        part = slice(start, min(start + step, queries))
        number = part.stop - start
        _corners(positions[part], weights[part], layout, entries[:number], shares[:number])
        output[part] = embedding_bag(
            entries[:number].view(number * heads, -1),
            table,
            mode="sum",
            per_sample_weights=shares[:number].view(number * heads, -1),
        ).view(number, heads, -1)
    return output.flatten(1)


def chunk_size(device: torch.device) -> int:
    """Return the number of queries to compute together."""
    if device.type != "cpu":
        return _GPU_CHUNK
    threads = torch.get_num_threads()
    return _CACHED_CHUNK if threads == 1 else _THREAD_CHUNK * threads


def _corners(
    positions: torch.Tensor, weights: torch.Tensor, layout: SamplingLayout, entries: torch.Tensor, shares: torch.Tensor
) -> None:
    """Write the table entry and the weight of each point's four cells, `[Q, heads, 4, columns / heads]` each."""
    # Points are clamped to the border, where all is zero; whole positions there have no weight for the cells beyond.
    inside = torch.minimum(positions.clamp_(min=-1.0), layout.limits, out=positions)
    cell = inside.floor()
    right, below = inside.sub_(cell).unbind(1)
    column, row = cell.unbind(1)

    shape = (len(weights), entries.shape[1], entries.shape[3])
    first = torch.addcmul(layout.origin, row, layout.down).add_(column, alpha=layout.across)
    down = layout.down.view(shape[1:]).to(torch.int32)
    top_left, top_right, bottom_left, bottom_right = entries.unbind(2)
    top_left.copy_(first.view(shape)).clamp_(0, layout.last)  # NaN must still be a valid entry
    torch.add(top_left, layout.across, out=top_right)
    torch.add(top_left, down, out=bottom_left)
    torch.add(bottom_left, layout.across, out=bottom_right)

    bottom = weights * below
    top = weights - bottom
    top_left, top_right, bottom_left, bottom_right = shares.unbind(2)
    right, bottom, top = right.view(shape), bottom.view(shape), top.view(shape)
    torch.mul(bottom, right, out=bottom_right)
    torch.sub(bottom, bottom_right, out=bottom_left)
    torch.mul(top, right, out=top_right)
    torch.sub(top, top_right, out=top_left)
