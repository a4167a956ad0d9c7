"""The Triton kernel of `taylor`: tiles of W and G are loaded once and summed in registers.

One program walks along a row of tiles when only rows are asked for, and down a column of tiles
otherwise. Where several programs share a row or a column, or channels are grouped, each writes its
own sums and a second, small kernel folds them in a fixed order: nothing depends on timing.
"""

from __future__ import annotations

import torch

from compressor.kernels.triton_support import Variant, jit, on, tl, triton

WARPS = 4
STAGES = 3  # two tiles of 12 or 16 KiB are under way while one is summed
PROGRAMS = 512  # about four for each multiprocessor of the largest device


@jit
def _neighbours(x, VECTOR: tl.constexpr):
    """Sums of neighbours that one thread holds: [rows, columns] -> [rows, columns / VECTOR]."""
    return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // VECTOR, VECTOR)), 2)


@jit
def _below(x, WARPS: tl.constexpr):
    """Sums of rows that one thread holds: [rows, columns] -> [WARPS, columns]."""
    return tl.sum(tl.reshape(x, (x.shape[0] // WARPS, WARPS, x.shape[1])), 0)


@jit
def _not_finite(x):
    """How many elements are infinite or no number."""
    return tl.sum(tl.sum(tl.where(tl.abs(x) < float("inf"), 0, 1), 1), 0)


@jit
def _put(at, step, inside, sums, AXIS: tl.constexpr, ADD: tl.constexpr):
    """Store each statistic, summed along AXIS, `step` after the last, or add it to what is there."""
    for k in tl.static_range(len(sums)):
        total = tl.sum(sums[k], AXIS)
        if ADD:
            total += tl.load(at + k * step, mask=inside, other=0.0)
        tl.store(at + k * step, total, mask=inside)


@jit
def _taylor_kernel(
    weight,  # [rows, columns]
    grad,  # [rows, columns]
    row_sums,  # [column_blocks, COUNT, rows] float32, or None
    column_sums,  # [blocks of rows, COUNT, columns] float32, or None
    nonfinite,  # [] int64
    rows,
    columns,
    weight_stride_row,
    weight_stride_column,
    grad_stride_row,
    grad_stride_column,
    column_blocks,
    rows_per_block,
    columns_per_block,
    grad_scale,
    COUNT: tl.constexpr,
    DOWN: tl.constexpr,
    ADD_ROWS: tl.constexpr,
    ADD_COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
    WARPS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    column_block = tl.program_id(0) % column_blocks
    row_block = (tl.program_id(0) // column_blocks).to(tl.int64)
    row = row_block * rows_per_block + tl.arange(0, TILE_ROWS)
    column = column_block * columns_per_block + tl.arange(0, TILE_COLUMNS)
    if DOWN:
        left = tl.minimum(rows - row_block * rows_per_block, rows_per_block)
        tiles = tl.cdiv(left, TILE_ROWS)
        zeros = tl.zeros((WARPS, TILE_COLUMNS), tl.float32)
    else:
        left = tl.minimum(columns - column_block * columns_per_block, columns_per_block)
        tiles = tl.cdiv(left, TILE_COLUMNS)
        zeros = tl.zeros((TILE_ROWS, TILE_COLUMNS // VECTOR), tl.float32)
    if row_sums is not None:
        row_sums += column_block.to(tl.int64) * COUNT * rows
    sums = (zeros, zeros, zeros, zeros, zeros)[:COUNT]
    top, start = row, column
    for _ in tl.range(0, tiles, num_stages=STAGES):
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        column64 = column.to(tl.int64)[None, :]
        weight_at = row[:, None] * weight_stride_row + column64 * weight_stride_column
        grad_at = row[:, None] * grad_stride_row + column64 * grad_stride_column
        w = tl.load(weight + weight_at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + grad_at, mask=inside, other=0.0).to(tl.float32)
        p = w * (g * grad_scale)
        tile = (p, tl.abs(p), p * p, tl.abs(w), w * w)[:COUNT]
        added = ()
        for k in tl.static_range(COUNT):
            if DOWN:
                added += (sums[k] + _below(tile[k], WARPS),)
            else:
                added += (sums[k] + _neighbours(tile[k], VECTOR),)
        sums = added
        if DOWN:
            if row_sums is not None:
                _put(row_sums + row, rows, row < rows, tile, 1, ADD_ROWS)
            row += TILE_ROWS
        else:
            column += TILE_COLUMNS
    if DOWN:
        column_sums += row_block * COUNT * columns
        _put(column_sums + column, columns, column < columns, sums, 0, ADD_COLUMNS)
    else:
        _put(row_sums + row, rows, row < rows, sums, 1, ADD_ROWS)
    # A product that is not finite leaves a sum of absolute ones that is not. Only then, and hardly ever,
    # are they counted, by reading everything again.
    if _not_finite(sums[1]) > 0:
        row, column = top, start
        count = 0
        for _ in range(0, tiles):
            inside = (row < rows)[:, None] & (column < columns)[None, :]
            column64 = column.to(tl.int64)[None, :]
            weight_at = row[:, None] * weight_stride_row + column64 * weight_stride_column
            grad_at = row[:, None] * grad_stride_row + column64 * grad_stride_column
            w = tl.load(weight + weight_at, mask=inside, other=0.0).to(tl.float32)
            g = tl.load(grad + grad_at, mask=inside, other=0.0).to(tl.float32)
            count += _not_finite(w * (g * grad_scale))
            if DOWN:
                row += TILE_ROWS
            else:
                column += TILE_COLUMNS
        tl.atomic_add(nonfinite, count.to(tl.int64), mask=count > 0, sem="relaxed")


@jit
def _taylor_fold_kernel(
    sums,  # [parts, statistics, groups * group] float32
    out,  # [statistics, groups] float32, added to
    parts,
    groups,
    group,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_MEMBERS: tl.constexpr,
):
    which = tl.program_id(0) * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    statistic = tl.program_id(1)
    total = tl.zeros((BLOCK_PARTS, BLOCK_GROUPS, BLOCK_MEMBERS), tl.float32)
    for first_part in range(0, parts, BLOCK_PARTS):
        part = first_part + tl.arange(0, BLOCK_PARTS).to(tl.int64)[:, None, None]
        for first_member in range(0, group, BLOCK_MEMBERS):
            member = first_member + tl.arange(0, BLOCK_MEMBERS)[None, None, :]
            inside = (part < parts) & (which < groups)[None, :, None] & (member < group)
            channel = which[None, :, None] * group + member
            at = (part * tl.num_programs(1) + statistic) * (groups * group) + channel
            total += tl.load(sums + at, mask=inside, other=0.0)
    _put(out + statistic * groups + which, 0, which < groups, (tl.sum(total, 2),), 0, True)


def launch(weight, grad, rows, columns, nonfinite, row_group, column_group, grad_scale):
    """`taylor`'s Triton implementation, with the arguments of its schema."""
    if weight.stride(0) == 1 != weight.stride(1):
        # A transposed view: its columns are rows in memory.
        weight, grad = weight.T, grad.T
        rows, columns, row_group, column_group = columns, rows, column_group, row_group
    if weight.numel() == 0:
        return
    shape = weight.shape
    sizes = weight.element_size(), grad.element_size()
    vector = 16 // min(sizes)
    tile, blocks = _tiling(shape, vector, 4 if sizes[0] == sizes[1] else 2, columns is not None)
    block = [
        triton.cdiv(triton.cdiv(s, b), t) * t for s, b, t in zip(shape, blocks, tile, strict=True)
    ]
    row_blocks, column_blocks = (triton.cdiv(s, b) for s, b in zip(shape, block, strict=True))
    row_sums = _scratch(rows, column_blocks, row_group)
    column_sums = _scratch(columns, row_blocks, column_group)
    with on(weight):
        _taylor_kernel[(row_blocks * column_blocks,)](
            weight,
            grad,
            row_sums,
            column_sums,
            nonfinite,
            *shape,
            *weight.stride(),
            *grad.stride(),
            column_blocks,
            *block,
            grad_scale,
            COUNT=len(columns if rows is None else rows),
            DOWN=columns is not None,
            ADD_ROWS=row_sums is rows,
            ADD_COLUMNS=column_sums is columns,
            VECTOR=vector,
            WARPS=WARPS,
            TILE_ROWS=tile[0],
            TILE_COLUMNS=tile[1],
            STAGES=STAGES,
            num_warps=WARPS,
        )
        _fold(row_sums, rows, row_group)
        _fold(column_sums, columns, column_group)


def _tiling(shape, vector, vectors, down):
    """(rows, columns) of a tile, and the numbers of blocks of rows and of columns.

    A thread loads `vectors` times `vector` neighbours, 16 bytes or more, from each matrix. Walking
    along rows, all warps lie side by side, so that a thread meets few rows; walking down, each warp
    has rows of its own, so that a thread meets few columns. Either way its sums fit in registers.
    """
    height, width = shape
    if down:
        tile = vectors * WARPS, 32 * vector
        column_blocks = triton.cdiv(width, tile[1])
        fewest, most = triton.cdiv(height, 256), triton.cdiv(height, 32)
        return tile, (max(fewest, min(most, PROGRAMS // column_blocks)), column_blocks)
    across = min(32 * WARPS * vector, max(32, triton.next_power_of_2(width)))
    tile = 32 * WARPS * vector * vectors // across, across
    row_blocks = triton.cdiv(height, tile[0])
    # A row is shared by programs only where whole rows would leave multiprocessors idle.
    return tile, (row_blocks, max(1, min(triton.cdiv(width, across), PROGRAMS // 2 // row_blocks)))


def _scratch(out, blocks, group):
    """What the kernel writes: the result itself, or sums of blocks that are yet to be folded."""
    if out is None or blocks == group == 1:
        return out
    shape = blocks, out.shape[0], out.shape[1] * group
    return torch.empty(shape, dtype=torch.float32, device=out.device)


def _fold(sums, out, group):
    if sums is out:
        return
    count, groups = out.shape
    members = min(triton.next_power_of_2(group), 1024)
    beside = max(1, 128 // members)
    _taylor_fold_kernel[(triton.cdiv(groups, beside), count)](
        sums,
        out,
        len(sums),
        groups,
        group,
        BLOCK_PARTS=min(triton.next_power_of_2(len(sums)), 4096 // (members * beside)),
        BLOCK_GROUPS=beside,
        BLOCK_MEMBERS=members,
    )


def _variant(weight, grad, count, rows, columns):
    """What a call with a matrix of 4096 x 4096 compiles."""
    vector = 4 if weight == grad == "fp32" else 8
    tile, _ = _tiling((4096, 4096), vector, 4 if weight[-2:] == grad[-2:] else 2, columns)
    pointers = {"weight": weight, "grad": grad, "nonfinite": "i64"}
    pointers |= {"row_sums": "fp32"} if rows else {}
    pointers |= {"column_sums": "fp32"} if columns else {}
    numbers = ["rows", "columns", "weight_stride_row", "grad_stride_row", "columns_per_block"]
    numbers += ["column_blocks", "rows_per_block"] if columns else []
    types = {name: f"*{kind}:16" for name, kind in pointers.items()}
    types |= dict.fromkeys(numbers, "i32:16") | {"grad_scale": "fp32"}
    constants = {"weight_stride_column": 1, "grad_stride_column": 1}
    constants |= {} if rows else {"row_sums": None}
    if not columns:
        types |= {"rows_per_block": "i32"}
        constants |= {"column_sums": None, "column_blocks": 1}
    constants |= {
        "COUNT": count,
        "DOWN": columns,
        "ADD_ROWS": not columns,
        "ADD_COLUMNS": False,
        "VECTOR": vector,
        "WARPS": WARPS,
        "TILE_ROWS": tile[0],
        "TILE_COLUMNS": tile[1],
        "STAGES": STAGES,
    }
    wide = ("weight", "grad")
    return Variant(_taylor_kernel, types, constants, WARPS, wide=wide)


def _fold_variant(parts, groups, members):
    types = {"sums": "*fp32:16", "out": "*fp32:16", "groups": "i32:16"}
    blocks = {"BLOCK_PARTS": parts, "BLOCK_GROUPS": groups, "BLOCK_MEMBERS": members}
    types |= {"parts": "i32:16"} if parts > 1 else {"group": "i32:16"}
    one = {"group": 1} if parts > 1 else {"parts": 1}
    return Variant(_taylor_fold_kernel, types, one | blocks)


if triton is not None:
    VARIANTS = [
        _variant("bf16", "bf16", 3, rows=True, columns=False),
        _variant("bf16", "bf16", 3, rows=False, columns=True),
        _variant("bf16", "bf16", 5, rows=True, columns=True),
        _variant("bf16", "fp32", 5, rows=False, columns=True),
        _variant("fp32", "fp32", 3, rows=True, columns=False),
        _variant("fp16", "fp16", 5, rows=False, columns=True),
        _fold_variant(parts=32, groups=128, members=1),
        _fold_variant(parts=1, groups=1, members=128),
    ]
