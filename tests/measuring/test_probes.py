"""What the errors of blocks are worth, against models that are really cut."""

import json

import pytest
import torch
from jobs import compress
from transformers import AutoModelForCausalLM

from compressor.config.target import Target
from compressor.errors import InputError
from compressor.measuring.landscape import HELD_BACK, measure_landscape
from compressor.measuring.probes import halves
from compressor.model.checkpoint import Checkpoint
from compressor.model.passes import Passing
from compressor.model.stream import BlockStream
from compressor.planning.allocation import allocate
from compressor.planning.landscape import LEAST, Landscape, scaled
from compressor.planning.lattice import Lattice, Wanted, lattice
from compressor.scoring.probing import loss_changes
from compressor.scoring.score import score
from compressor.scoring.scores import Scores, best
from compressor.text.tokens import TokenSet


def texts(count=17) -> TokenSet:
    torch.manual_seed(5)
    return TokenSet([torch.randint(3, 15, (20 + i % 5,)) for i in range(count)])


def measured(folder, repair: str, tokens: TokenSet | None = None) -> tuple[Scores, BlockStream]:
    checkpoint = Checkpoint(folder)
    stream, scores = BlockStream(checkpoint, dtype=torch.float64), score(checkpoint, "random")
    measure_landscape(
        scores.blocks, stream, tokens or texts(), lattice(checkpoint), repair, probing=True
    ).keep_with(scores)
    return scores, stream


@pytest.mark.parametrize(
    ("attention", "ffn", "expected"),
    [
        ([1, 2, 3, 4], [16, 32, 48, 64], [(2, 32), (2, 64), (4, 32)]),
        ([4], [16, 32, 48], [(4, 16)]),
        ([2, 8], [64], [(2, 64)]),
        ([4], [64], []),
    ],
)
def test_cuts_that_are_measured(attention, ffn, expected):
    assert halves(Lattice(ffn, attention)) == expected


def test_losses_are_those_of_the_model_without_these_units(any_family):
    """Against probes that zero the removed units' channels, in an independent pass."""
    if Checkpoint(any_family).family.post_norms:
        with pytest.raises(InputError, match="norms that before it is added"):
            measured(any_family, "none")
        return
    scores, stream = measured(any_family, "none")
    landscape, (_, held) = Landscape.of(scores), texts().split(HELD_BACK)
    probes = [
        (b, {g: best(block[g], n) for g, n in zip(("attention", "ffn"), cut, strict=True)})
        for b, block in enumerate(scores.blocks)
        for cut in landscape.cuts
    ]
    expected = loss_changes(stream, held.batches(), probes)
    found = torch.cat(landscape.losses)
    assert len(found) == len(probes) == 3 * len(halves(lattice(stream.checkpoint))) > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_refitted_cuts_against_a_model_with_the_refitted_weights(llama):
    """The loss with half the channels of block 1, refitted by normal equations of its own."""
    tokens = texts(24)
    scores, _ = measured(llama, "ridge", tokens)
    landscape, index = Landscape.of(scores), 1
    plain, _ = measured(llama, "none", tokens)
    at = landscape.cuts.index((4, 24))
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float64).eval()
    fitted, held = tokens.split(HELD_BACK)
    layer = model.model.layers[index]
    kept = best(scores.blocks[index]["ffn"], 24)
    rows, targets = [], []

    def take(module, args, out) -> None:
        rows.append(args[0][0]), targets.append(out[0])

    outs = []
    handles = [
        layer.mlp.down_proj.register_forward_hook(take),
        layer.register_forward_hook(lambda *a: outs.append(a[-1])),
    ]
    with torch.no_grad():
        for sequence in fitted.sequences:
            model(sequence[None], use_cache=False)
        for handle in handles:
            handle.remove()
        rate = torch.cat([o.reshape(-1, o.shape[-1]) for o in outs])
        rate = rate.square().mean(-1, keepdim=True).rsqrt()
        inputs, wanted = torch.cat(rows)[:, kept] * rate, torch.cat(targets) * rate
        weight, losses = layer.mlp.down_proj.weight, []
        present = weight[:, kept].clone()
        gram = inputs.T @ inputs
        predicted = sum(len(s) - 1 for s in held.sequences)

        def loss() -> float:
            return (
                sum(
                    model(s[None], labels=s[None], use_cache=False).loss.item() * (len(s) - 1)
                    for s in held.sequences
                )
                / predicted
            )

        dense = loss()
        for damping in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
            ridge = gram + damping * gram.diagonal().mean() * torch.eye(len(kept)).double()
            change = torch.linalg.solve(ridge, inputs.T @ (wanted - inputs @ present.T)).T
            weight.zero_()
            weight[:, kept] = present + change
            losses.append(loss() - dense)
    # transformers computes the loss in float32
    assert min(abs(x - landscape.losses[index][at]) for x in losses) < 2e-6
    assert abs(landscape.losses[index][at] - Landscape.of(plain).losses[index][at]) > 1e-4


def test_scales_are_least_squares_and_never_nothing():
    errors = torch.tensor([[0.5, 0.2], [0.3, 0.0]], dtype=torch.float64)
    cuts = [(1, 8), (2, 4)]
    landscape = Landscape(
        [errors, errors, errors],
        [1, 2],
        [4, 8],
        losses=[torch.tensor(x).double() for x in ([0.4, 0.6], [0.2, 0.9], [-0.1, 0.0])],
        cuts=cuts,
    )
    first, second, third = scaled(landscape, Lattice([4, 8], [1, 2]))
    torch.testing.assert_close(first, 2 * errors)
    torch.testing.assert_close(second, (0.2 * 0.2 + 0.9 * 0.3) / 0.13 * errors)
    floor = LEAST * (2 + 0.31 / 0.13) / 3
    torch.testing.assert_close(third, floor * errors)


def test_kept_with_the_scores(llama, tmp_path):
    scores, stream = measured(llama, "ridge")
    scores.save(tmp_path / "s.safetensors")
    loaded = Scores.load(tmp_path / "s.safetensors")
    allowed = lattice(stream.checkpoint)
    for one, other in zip(
        *(scaled(Landscape.of(s), allowed) for s in (scores, loaded)), strict=True
    ):
        assert torch.equal(one, other)
    target = Target("keep-blocks", 0.6)
    own = allocate(loaded, stream.checkpoint, target, Wanted(layout="per-layer"), how="measured")
    assert own.about["keep_blocks_reached"] <= 0.6
    loaded.measured.tensors["losses"] = []
    with pytest.raises(InputError, match="--allocate measured needs what is measured"):
        allocate(loaded, stream.checkpoint, target, how="measured")


@pytest.mark.parametrize("layout", ["uniform", "padded"])
def test_compress(llama, text_file, tmp_path, capsys, layout):
    asked = ["--keep-blocks", 0.6, "--allocate", "measured", "--layout", layout, "--no-verify"]
    asked += ["--calibration", text_file, "--length", 32, "--samples", 10, "--method", "random"]
    dest = tmp_path / "out"
    assert compress(llama, dest, *asked, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    rows = [row["allocation"] for row in found["held_back"]["rows"]]
    assert found["allocate"] == "measured" and rows[:3] == ["measured", "exact", "uniform"]


def test_a_killed_pass_goes_on(llama, tmp_path):
    """With what a finished block left, the losses are the same as of one pass."""
    scores, stream = measured(llama, "ridge")
    given = (scores.blocks, stream, texts(), lattice(stream.checkpoint), "ridge")
    saved = tmp_path / "blocks"

    def killed(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_landscape(*given, probing=True, passing=Passing(killed, saved))
    found = measure_landscape(*given, probing=True, passing=Passing(saved=saved))
    for one, other in zip(found.losses, Landscape.of(scores).losses, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
