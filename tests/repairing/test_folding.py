"""The fold of dropped blocks, and repairs after it, against whole models in float64."""

from itertools import count

import pytest
import torch
from repairs import texts
from transformers import AutoModelForCausalLM

from compressor.errors import InputError
from compressor.model.activations import states_of
from compressor.model.checkpoint import Checkpoint
from compressor.model.fewer_blocks import FewerBlocks
from compressor.model.layers import added
from compressor.model.modules import make_linear, replaced_forward
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.repairing.folding import fold, fold_record, runs_of
from compressor.repairing.streaming import HELD_BACK, Repair
from compressor.text.tokens import TokenSet, held_back

TEXT = TokenSet(texts(40))
BLOCKS = 5


class Whole:
    """A model in memory in float64, some blocks of which may pass the stream on."""

    def __init__(self, folder, without=()):
        self.family = Checkpoint(folder).family
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        self.model = make_linear(model).eval()
        self.layers = self.model.get_submodule(self.family.layers)
        self.without = [self.layers[block] for block in without]
        experts = self.family.experts
        self.ffn = experts.all if experts else self.family.output("ffn").removesuffix(".weight")
        if experts:
            self.model.set_experts_implementation("eager")  # the other has no float64

    def pass_on(self, _, hidden, *args, **more):
        return (hidden,) if self.family.in_a_tuple else hidden

    def seen(self, block: int, module: str = "") -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of every sequence what a module of a block reads and gives, [tokens, channels]."""
        found = []

        def keep(_, args, out) -> None:
            found.append((args[0].flatten(0, -2), states_of(out).flatten(0, -2)))

        handle = self.layers[block].get_submodule(module).register_forward_hook(keep)
        with torch.no_grad(), replaced_forward(self.without, self.pass_on):
            for row in TEXT.sequences:
                self.model(row[None], use_cache=False)
        handle.remove()
        return found

    def given(self, block: int) -> list[torch.Tensor]:
        """What the FFN of a block adds to the stream."""
        return [
            added(self.layers[block], self.family, "ffn", out).detach()
            for _, out in self.seen(block, self.ffn)
        ]

    def after(self, block: int) -> list[torch.Tensor]:
        return [out for _, out in self.seen(block)]


def rows(inputs, targets, aims) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the sequences that are fitted, all tokens as they count."""
    held = held_back(len(TEXT.sequences), HELD_BACK)
    fitted = [i for i in range(len(TEXT.sequences)) if i not in held]
    rates = [aim.square().mean(-1, keepdim=True).rsqrt() for aim in aims]
    return tuple(torch.cat([x[i] * rates[i] for i in fitted]) for x in (inputs, targets))


def solved(a: torch.Tensor, t: torch.Tensor, present: torch.Tensor, relative: float):
    """The ridge regression of t on a, drawn toward what is present."""
    gram = a.T @ a
    damped = gram + relative * gram.diagonal().mean() * torch.eye(len(gram), dtype=a.dtype)
    return present + torch.linalg.solve(damped, a.T @ (t - a @ present.T)).T


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_checkpoint):
    return make_checkpoint(tmp_path_factory.mktemp("five") / "model", num_hidden_layers=BLOCKS)


def in_float64(folder) -> BlockStream:
    return BlockStream(Checkpoint(folder), dtype=torch.float64)


def test_runs_are_folded_one_after_the_other(folder):
    """The second one on what the first has left, toward what the whole model computes."""
    folded = fold(in_float64(folder), [1, 3, 4], TEXT)
    assert [(run["into"], run["dropped"]) for run in folded.record] == [(0, [1]), (2, [3, 4])]
    dense, cut = Whole(folder), Whole(folder, without=[1, 3, 4])
    for place, run in enumerate(folded.record):
        into, aims = run["into"], dense.after(run["dropped"][-1])
        given, out = cut.given(into), cut.after(into)
        targets = [y - x + m for y, x, m in zip(aims, out, given, strict=True)]
        a, t = rows(given, targets, aims)
        map_ = solved(a, t, torch.eye(a.shape[1], dtype=a.dtype), run["lambda"])
        weight = cut.layers[into].get_submodule(cut.ffn).weight
        weight.data = map_ @ weight.data
        found = folded.tensors[f"model.layers.{place}.mlp.down_proj.weight"]
        torch.testing.assert_close(found.double(), weight.data, rtol=1e-5, atol=1e-6)
        assert run["tensors"] == ["mlp.down_proj.weight"] and run["after"] < run["before"]


@pytest.mark.parametrize("family", ["bloom", "opt"])  # whose FFN has all tokens in one row
def test_a_bias_takes_what_is_constant(random_family, family):
    folder = random_family(family)
    folded = fold(in_float64(folder), [1], TEXT)
    (run,), whole = folded.record, Whole(folder)
    aims, given, out = whole.after(1), whole.given(0), whole.after(0)
    ones = [torch.cat([m, torch.ones_like(m[:, :1])], -1) for m in given]
    targets = [y - x + m for y, x, m in zip(aims, out, given, strict=True)]
    a, t = rows(ones, targets, aims)
    many = t.shape[1]
    map_ = solved(a, t, torch.eye(many, many + 1, dtype=a.dtype), run["lambda"])
    module = whole.layers[0].get_submodule(whole.ffn)
    name = f"{whole.family.layers}.0.{whole.ffn}"
    expected = {
        f"{name}.weight": map_[:, :many] @ module.weight.data,
        f"{name}.bias": map_[:, :many] @ module.bias.data + map_[:, many],
    }
    for name, tensor in expected.items():  # Bloom's softmax is computed in float32
        torch.testing.assert_close(folded.tensors[name].double(), tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_all_experts_take_the_same_map(random_family, family):
    """The shared one, too, which the second has: what they give is a sum."""
    folder = random_family(family)
    stream = in_float64(folder)
    stream.model.set_experts_implementation("eager")
    folded, whole = fold(stream, [1], TEXT), Whole(folder)
    (run,) = folded.record
    aims, given, out = whole.after(1), whole.given(0), whole.after(0)
    targets = [y - x + m for y, x, m in zip(aims, out, given, strict=True)]
    a, t = rows(given, targets, aims)
    map_ = solved(a, t, torch.eye(a.shape[1], dtype=a.dtype), run["lambda"])
    names = [n for n in run["tensors"] if n in dict(whole.layers[0].named_parameters())]
    assert names == run["tensors"] and len(names) == (2 if family == "qwen2_moe" else 1)
    for name in names:
        expected = map_ @ whole.layers[0].get_parameter(name).data
        found = folded.tensors[f"model.layers.0.{name}"].double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_norm_after_the_projection_takes_a_factor_a_channel(random_family):
    folder = random_family("gemma2")
    folded = fold(in_float64(folder), [1], TEXT)
    (run,), whole = folded.record, Whole(folder)
    aims, given, out = whole.after(1), whole.given(0), whole.after(0)
    targets = [y - x + m for y, x, m in zip(aims, out, given, strict=True)]
    a, t = rows(given, targets, aims)
    squares = a.square().sum(0)
    factors = 1 + ((t - a) * a).sum(0) / (squares + run["lambda"] * squares.mean())
    name = "post_feedforward_layernorm.weight"
    expected = factors * (1 + whole.layers[0].get_parameter(name).data) - 1
    found = folded.tensors[f"model.layers.0.{name}"].double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_block_that_is_linear_is_reproduced(folder):
    """One that adds B m where the FFN before it gives m: the model without it computes the same."""
    stream, seen, at = in_float64(folder), [], count()
    b = 0.1 * torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    projection = stream.layers[0].mlp.down_proj
    handle = projection.register_forward_hook(lambda _, args, out: seen.append(out))

    def linear(_, hidden, *args, **more):
        return hidden + seen[next(at)] @ b.T

    with replaced_forward([stream.layers[1]], linear):
        folded = fold(stream, [1], TEXT)
        assert folded.record[0]["lambda"] == 0 and folded.record[0]["after"] < 1e-12
        seen.clear()
        at = count()
        ids = [batch.ids for batch in TEXT.batches()]
        expected = next(stream.logits(ids[:1]))
    handle.remove()
    part = FewerBlocks(stream.checkpoint, [1], folded.tensors)
    found = next(BlockStream(part, dtype=torch.float64).logits(ids[:1]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # weights are float32


def test_a_repair_goes_on_toward_the_whole_model(folder):
    """The block before those that went is refitted to the stream after them."""
    part = FewerBlocks(Checkpoint(folder), [1, 2])
    stream = BlockStream(part, dtype=torch.float64)
    repair = Repair(stream, Plan.whole(part), TEXT, "ridge")
    changed = list(repair.blocks())
    dense = Whole(folder)
    aims, out = dense.after(2), dense.after(0)
    inner = [x for x, _ in dense.seen(0, dense.ffn)]
    targets = [y - x + m for y, x, m in zip(aims, out, dense.given(0), strict=True)]
    a, t = rows(inner, targets, aims)
    weight = dense.layers[0].get_submodule(dense.ffn).weight.data
    expected = solved(a, t, weight, repair.record[0]["steps"]["ffn"]["lambda"])
    found = changed[0]["mlp.down_proj.weight"].double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert all(block for block in changed)  # what follows is mended, too


def distance(folder, part: FewerBlocks, kind: str) -> float:
    """How far the stream ends from the whole model's, as a share of it."""
    stream, ids = BlockStream(part), [row[None] for row in TEXT.sequences]
    changes = {}
    if kind != "none":
        repair = Repair(stream, Plan.whole(part), TEXT, kind)
        for block, tensors in enumerate(repair.blocks()):
            changes |= {part.block_name(block, name): t for name, t in tensors.items()}
    ends = BlockStream(FewerBlocks(part.whole, part.dropped, part.folded | changes)).run(ids)
    aims, error, energy = BlockStream(Checkpoint(folder)).run(ids), 0.0, 0.0
    for i in range(len(ids)):
        aim = aims.get(i, torch.device("cpu"))
        error += (ends.get(i, torch.device("cpu")) - aim).square().sum().item()
        energy += aim.square().sum().item()
    return error / energy


def test_every_step_comes_nearer(folder):
    source, dropped = Checkpoint(folder), [1, 3]
    folded = fold(BlockStream(source), dropped, TEXT)
    plain, part = (FewerBlocks(source, dropped, t) for t in ({}, folded.tensors))
    ways = [(plain, "none"), (part, "none"), (part, "ridge")]
    found = [distance(folder, *way) for way in ways]
    assert found == sorted(found, reverse=True) and len({*found}) == len(found)


def test_the_record_names_what_a_repair_left(folder):
    source = Checkpoint(folder)
    name = "mlp.down_proj.weight"
    part = FewerBlocks(source, [2], {f"model.layers.1.{name}": torch.ones(32, 48)})
    plan = Plan.whole(part)
    alone = fold_record(part, plan, None)["blocks"]
    assert [block["tensors"] for block in alone] == [[], [name], [], []]
    plan.blocks[1] = plan.blocks[1] | {"ffn": [0, 5]}
    narrow = fold_record(part, plan, None)["blocks"]
    assert narrow[1]["sha256"] != alone[1]["sha256"]
    repair = {"blocks": [{"tensors": [name]}] * 4}
    assert fold_record(part, plan, repair)["blocks"][1]["tensors"] == []


def test_dropped_blocks_together():
    assert runs_of([5, 1, 2, 7, 6]) == [[1, 2], [5, 6, 7]]


def test_a_single_sequence_cannot_be_folded_on(folder):
    with pytest.raises(InputError, match="at least 2 sequences are needed, not 1"):
        fold(BlockStream(Checkpoint(folder)), [1], TokenSet(TEXT.sequences[:1]))
