"""The landscape of cuts, against blocks that are really cut, in float64."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.cutting.cut import channels_of
from compressor.errors import InputError
from compressor.measuring.landscape import HELD_BACK, measure_landscape
from compressor.model.activations import states_of
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.model.units import BlockGeometry, only_units
from compressor.planning.lattice import Lattice, lattice
from compressor.scoring.score import score
from compressor.scoring.scores import best
from compressor.solvers.ridge import GRID, ridge
from compressor.text.tokens import TokenSet, held_back


def texts(count=17) -> TokenSet:
    torch.manual_seed(5)
    return TokenSet([torch.randint(3, 15, (20 + i % 5,)) for i in range(count)])


def landscape_of(folder, repair="none", tokens=None, allowed=None, **options):
    checkpoint = Checkpoint(folder)
    options = {"dtype": torch.float64} | options
    scores = score(checkpoint, "random", seed=1)
    stream = BlockStream(checkpoint, **options)
    allowed = allowed or lattice(checkpoint)
    return scores, measure_landscape(scores.blocks, stream, tokens or texts(), allowed, repair)


class Block:
    """A dense block in memory: what it is given, and what it makes of it, of every sequence."""

    def __init__(self, folder, index: int, tokens: TokenSet):
        self.checkpoint = Checkpoint(folder)
        self.geometry = BlockGeometry.of(self.checkpoint)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        self.layer = model.get_submodule(self.geometry.family.layers)[index]
        self.calls, self.dense = [], []

        def take(_, args, kwargs, out) -> None:
            self.calls.append((args, kwargs))
            self.dense.append(states_of(out))

        handle = self.layer.register_forward_hook(take, with_kwargs=True)
        with torch.no_grad():
            for sequence in tokens.sequences:
                model(sequence[None], use_cache=False)
        handle.remove()

    def kept(self, scores, split) -> dict[str, list[int]]:
        return {g: best(scores[g], n) for g, n in split.items()}

    @torch.no_grad()
    def outputs(self, kept) -> list[torch.Tensor]:
        with only_units(self.layer, self.geometry, kept):
            return [states_of(self.layer(*args, **kwargs)) for args, kwargs in self.calls]

    def error(self, outputs, only=lambda i: True) -> float:
        shares = [
            (y - d).square().sum(-1) / d.square().sum(-1)
            for i, (y, d) in enumerate(zip(outputs, self.dense, strict=True))
            if only(i)
        ]
        return torch.cat([s.flatten() for s in shares]).mean().item()


@pytest.mark.parametrize("index", [0, 2])
def test_plain_errors_are_those_of_the_cut_block(any_kinds, index):
    if Checkpoint(any_kinds).family.post_norms:
        with pytest.raises(
            InputError, match="norms that before it is added; use --allocate uniform"
        ):
            landscape_of(any_kinds)
        return
    scores, found = landscape_of(any_kinds)
    block = Block(any_kinds, index, texts())
    assert found.errors[index].shape == (len(found.attention), len(found.ffn))
    for a, groups in enumerate(found.attention):
        for f, channels in list(enumerate(found.ffn))[::4]:
            split = {"attention": groups, "ffn": channels}
            outputs = block.outputs(block.kept(scores.blocks[index], split))
            expected = block.error(outputs)
            assert found.errors[index][a, f].item() == pytest.approx(expected, rel=1e-8, abs=1e-13)


def test_repaired_errors_are_those_of_the_refitted_block(llama):
    """o_proj and then down_proj refitted as the repair's formulas say, on the sequences it may see."""
    tokens, index = texts(), 1
    scores, found = landscape_of(llama, "ridge")
    _, plain = landscape_of(llama)
    block = Block(llama, index, tokens)
    count = len(tokens.sequences)
    held = [i in held_back(count, HELD_BACK) for i in range(count)]
    layer, o_proj, down = block.layer, block.layer.self_attn.o_proj, block.layer.mlp.down_proj
    seen = {}
    hooks = [
        o_proj.register_forward_pre_hook(
            lambda _, args: seen.setdefault("heads", []).append(args[0])
        ),
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda _, args: seen.setdefault("after", []).append(args[0])
        ),
    ]
    block.outputs({})
    for hook in hooks:
        hook.remove()

    def refit(weight, kept, inputs, targets, streams, grid):
        sums = []
        for wanted in (False, True):
            a, t, y = (
                torch.cat([x[0] for x, h in zip(xs, held, strict=True) if h == wanted])
                for xs in (inputs, targets, streams)
            )
            rate = y.square().mean(-1, keepdim=True).rsqrt()
            a, t = a[:, kept] * rate, t * rate
            sums.append((a.T @ a, t.T @ a, t.square().sum()))
        return ridge(*sums[0][:2], weight[:, kept], *sums[1], grid)[0]

    for split in ({"attention": 2, "ffn": 20}, {"attention": 3, "ffn": 40}):
        kept = block.kept(scores.blocks[index], split)
        heads = channels_of(kept["attention"], block.geometry.channels("attention"))
        with torch.no_grad():
            before = [y - o_proj(x) for x, y in zip(seen["heads"], seen["after"], strict=True)]
            targets = [o_proj(x) for x in seen["heads"]]
            new = refit(o_proj.weight, heads, seen["heads"], targets, seen["after"], GRID)
            after = [b + x[..., heads] @ new.T for b, x in zip(before, seen["heads"], strict=True)]
            inner = []
            hook = down.register_forward_pre_hook(lambda _, args, to=inner: to.append(args[0]))
            for x in after:
                layer.mlp(layer.post_attention_layernorm(x))
            hook.remove()
            targets = [d - x for d, x in zip(block.dense, after, strict=True)]
            whole = torch.cat([h[0] for h, out in zip(inner, held, strict=True) if not out])
            stream = torch.cat([d[0] for d, out in zip(block.dense, held, strict=True) if not out])
            energy = (whole.square() / stream.square().mean(-1, keepdim=True)).sum(0)
            ratio = (energy.mean() / energy[kept["ffn"]].mean()).item()
            grid = [value * ratio for value in GRID]
            new = refit(down.weight, kept["ffn"], inner, targets, block.dense, grid)
            outputs = [x + h[..., kept["ffn"]] @ new.T for x, h in zip(after, inner, strict=True)]
        expected = block.error(outputs, lambda i: held[i])
        place = found.attention.index(split["attention"]), found.ffn.index(split["ffn"])
        assert found.errors[index][place].item() == pytest.approx(expected, rel=1e-6)
        assert found.errors[index][place] < plain.errors[index][place]


def test_the_whole_block_has_no_error(llama):
    for repair in ("none", "ridge"):
        _, found = landscape_of(llama, repair)
        assert all(errors[-1, -1] < 1e-12 for errors in found.errors)


def test_batches_files_and_half_precision_change_nothing_that_matters(llama, tmp_path):
    _, exact = landscape_of(llama, "ridge")
    _, filed = landscape_of(llama, "ridge", place=tmp_path)
    assert all(a.equal(b) for a, b in zip(exact.errors, filed.errors, strict=True))
    _, single = landscape_of(llama, "ridge", dtype=torch.float32)
    _, half = landscape_of(llama, "ridge", dtype=torch.bfloat16)
    for a, b, c in zip(exact.errors, single.errors, half.errors, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-6)
        torch.testing.assert_close(a, c, rtol=0.1, atol=1e-3)


def test_part_of_the_lattice(llama):
    _, found = landscape_of(llama)
    part = found.on(Lattice([8, 48], [2, 4]))
    rows, columns = ([found.attention.index(2), -1], [found.ffn.index(8), -1])
    assert part[1].equal(found.errors[1][rows][:, columns])
    with pytest.raises(InputError, match=r"other widths, without 7; score again"):
        found.on(Lattice([7, 8], [2]))


def test_outputs_that_are_all_zero(llama, monkeypatch):
    run = BlockStream.record

    def silent(*given, **options):
        states, calls = run(*given, **options)
        for i in range(len(calls)):
            states.put(i, torch.zeros_like(states.get(i, "cpu")))
        return states, calls

    monkeypatch.setattr(BlockStream, "record", silent)
    with pytest.raises(InputError, match="block 0 are not finite, or all zero"):
        landscape_of(llama)


def test_too_little_text_to_judge_a_refit(llama):
    with pytest.raises(InputError, match="at least 2 calibration sequences"):
        landscape_of(llama, "ridge", texts(1))
