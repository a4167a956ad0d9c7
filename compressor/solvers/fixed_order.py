"""Sums and factorisations that come out the same bit for bit however many threads there are.

torch splits one long sum among its threads, so that the rounding depends on their number; several sums
side by side, as of the rows of a matrix, it does not split, nor one of fewer than `UNSPLIT` numbers.
LAPACK splits a factorisation, and takes other blocks with more threads; so it gets one thread, but for
matrices so large that the job would wait for it on many cores: their last bits depend on the number of
threads. A GPU is not concerned.
"""

from contextlib import contextmanager

import torch

LARGE = 2048  # rows; to factorise fewer takes one thread a fraction of a second
UNSPLIT = 32_768  # numbers: of fewer torch makes one part (`at::internal::GRAIN_SIZE`)


def total(x: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The sum of all elements [], in this dtype: of rows, then of pieces of their sums, in order."""
    several = x.ndim > 1 and x.numel() > x.shape[-1]
    sums = x.sum(-1, dtype=dtype).flatten() if several else x.flatten()
    pieces = [piece.sum(dtype=dtype) for piece in sums.split(UNSPLIT - 1)]
    return torch.stack(pieces).sum() if pieces else torch.zeros((), dtype=dtype, device=x.device)


@contextmanager
def one_thread(matrix: torch.Tensor):
    """While open, LAPACK has one thread for what it makes of a matrix on the CPU that is not `LARGE`."""
    threads = torch.get_num_threads()
    if matrix.is_cpu and threads > 1 and matrix.shape[-2] <= LARGE:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def factored(matrix: torch.Tensor) -> torch.Tensor | None:
    """The lower Cholesky factor; None where the matrix is not positive definite, or not finite."""
    with one_thread(matrix):
        factor, failed = torch.linalg.cholesky_ex(matrix)
    return None if failed else factor


def inverse_of(factor: torch.Tensor) -> torch.Tensor:
    """(L L^T)^-1 of a lower factor L."""
    with one_thread(factor):
        return torch.cholesky_inverse(factor)


def solved(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """L^-1 R of a lower factor L."""
    with one_thread(factor):
        return torch.linalg.solve_triangular(factor, right, upper=False)
