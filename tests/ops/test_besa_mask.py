"""BESA's mask: which weights are kept, bit for bit, and how it is registered."""

import pytest
import torch

from compressor.kernels.besa_cut import besa_cut
from compressor.kernels.besa_mask import BACKWARD, OP, besa_mask
from compressor.kernels.rank import rank

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def kept(ranks, cut):
    each = ranks.shape[0] // max(len(cut), 1)
    return ranks.to(torch.int32) >= cut.repeat_interleave(each)[:, None]


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (6, 64), (4, 4097), (0, 8), (2, 0)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_masks_exactly(device, backend, shape, dtype):
    weight = torch.randn(shape, device=device).to(dtype)
    ranks = rank(weight)
    columns = shape[1]
    for cut in ([columns] * shape[0], [0] * shape[0], torch.randint(columns + 1, shape[:1])):
        cut = torch.as_tensor(cut, dtype=torch.int32).to(device)
        found = besa_mask(weight, ranks, None, cut, backend=backend)
        assert found.dtype == dtype
        assert torch.equal(found, weight * kept(ranks, cut))
        assert ((found != 0).sum(1) == columns - cut).all()


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_groups_share_their_cut(device, backend, groups):
    weight = torch.randn(6, 50, device=device)
    ranks = rank(weight)
    cut = torch.arange(7, 7 + groups, dtype=torch.int32, device=device)
    found = besa_mask(weight, ranks, None, cut, backend=backend)
    assert (found == 0).sum(1).tolist() == cut.repeat_interleave(6 // groups).tolist()


@pytest.mark.parametrize("columns", [5, 16])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_is_kept_keeps_its_bits(device, backend, columns, dtype):
    bits = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    weight = torch.zeros(2, columns, dtype=dtype)
    weight[:, 1] = -0.0
    weight[:, 2] = torch.nan
    weight.view(bits)[1, 2] += 1  # a NaN with a payload
    weight[:, 3] = -torch.inf
    weight.view(bits)[:, 4] = 1  # the smallest subnormal
    ranks = torch.arange(columns).expand(2, columns).to(torch.uint16)
    cut = torch.tensor([0, 3], dtype=torch.int32)
    found = besa_mask(weight.to(device), ranks.to(device), None, cut.to(device), backend=backend)
    assert torch.equal(found.cpu().view(bits)[0], weight.view(bits)[0])
    assert torch.equal(found.cpu().view(bits)[1, 3:], weight.view(bits)[1, 3:])
    assert found.cpu().view(bits)[1, :3].tolist() == [0, 0, 0]


def test_the_default_cut_is_the_mean(device, backend):
    weight = torch.randn(4, 1000, device=device)
    ranks = rank(weight)
    beta = torch.randn(4, 101, device=device).softmax(1)
    found = besa_mask(weight, ranks, beta, backend=backend)
    assert (found == 0).sum(1).tolist() == besa_cut(beta, 1000).tolist()


@pytest.mark.parametrize("columns", [64, 63])
def test_any_cut_and_any_rank_stay_inside(device, backend, columns):
    weight = torch.randn(5, columns, device=device)
    ranks = rank(weight)
    cut = torch.tensor([-1, 10**9, -(2**31), 2**31 - 1, columns], dtype=torch.int32, device=device)
    (found,) = OP([weight], [ranks], None, [cut], backend=backend)
    assert torch.equal(found, weight * kept(ranks, cut))
    if backend == "ext":
        wild = torch.full_like(ranks, 65_535)
        assert BACKWARD([weight], [weight], [wild], [5], 101, backend=backend).shape == (5, 101)


@pytest.mark.parametrize("weight_too", [False, True])
def test_registration(weight_too):
    weight = torch.randn(6, 20)
    ranks = rank(weight)
    weight.requires_grad_(weight_too)
    beta = torch.rand(3, 5, requires_grad=True)
    cut = torch.tensor([3, 0, 20], dtype=torch.int32)
    torch.library.opcheck(OP.overload, ([weight], [ranks], beta, [cut]))
    torch.library.opcheck(OP.overload, ([weight], [ranks], None, [cut]))
    backward = ([torch.randn(6, 20)], [weight.detach()], [ranks], [3], 5)
    torch.library.opcheck(BACKWARD.overload, backward)


def test_compiles_without_a_break():
    weight = torch.randn(6, 200)
    ranks = rank(weight)
    theta = torch.randn(6, 101, requires_grad=True)

    def step(theta, offset):
        beta = theta.softmax(1)
        cut = besa_cut(beta, 200, seed=1, offset=offset)
        return besa_mask(weight, ranks, beta, cut).square().sum()

    step(theta, 2).backward()
    wanted, theta.grad = theta.grad, None
    torch.compile(step, backend="aot_eager", fullgraph=True)(theta, 2).backward()
    assert torch.equal(theta.grad, wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(3)}, r"weight has shape \[3\]"),
        ({"rank": torch.zeros(4, 8, dtype=torch.int32)}, "rank is torch.int32"),
        ({"rank": torch.zeros(4, 7, dtype=torch.uint16)}, r"rank has shape \[4, 7\]"),
        ({"cut": torch.zeros(3, dtype=torch.int32), "beta": None}, "4 rows cannot be 3 groups"),
        ({"cut": torch.zeros(0, dtype=torch.int32), "beta": None}, "4 rows cannot be 0 groups"),
        ({"cut": torch.zeros(2)}, "cut is torch.float32"),
        ({"cut": torch.tensor([0, 9], dtype=torch.int32)}, "cut is 0 to 9; it must be 0 to 8"),
        ({"cut": torch.tensor([-1, 3], dtype=torch.int32)}, "cut is -1 to 3"),
        ({"beta": torch.zeros(4, 5)}, r"beta has shape \[4, 5\]; it must be \[2, any\]"),
        ({"beta": torch.zeros(2, 1)}, "1 candidates; 2 to 4097"),
        ({"beta": None, "cut": None}, "beta and cut are both None"),
        (
            {"weight": torch.zeros(4, 65_536), "rank": torch.zeros(4, 65_536, dtype=torch.uint16)},
            "weight has 65536 columns; at most 65535",
        ),
    ],
)
@pytest.mark.parametrize("forced", [None, "ref"])
def test_bad_input_is_named(change, message, forced):
    arguments = {
        "weight": torch.zeros(4, 8),
        "rank": torch.zeros(4, 8, dtype=torch.uint16),
        "beta": torch.zeros(2, 5),
        "cut": torch.zeros(2, dtype=torch.int32),
    }
    with pytest.raises((ValueError, TypeError), match=message):
        besa_mask(**{**arguments, **change}, backend=forced)
