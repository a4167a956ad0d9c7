"""The streamed repair, against one written with whole models in float64."""

from contextlib import ExitStack

import pytest
import torch
from repairs import PLAN, plan_of, repaired, texts
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.config.repair import KINDS
from compressor.cutting.cut import channels_of, cut_block
from compressor.errors import InputError
from compressor.model.activations import states_of
from compressor.model.checkpoint import Checkpoint
from compressor.model.layers import ffn_of
from compressor.model.modules import make_linear
from compressor.model.units import BlockGeometry, only_units
from compressor.planning.plan import Plan
from compressor.repairing import block as one_block
from compressor.repairing import refine as training
from compressor.repairing.streaming import HELD_BACK
from compressor.text.tokens import held_back
from compressor.writing.cuts import write

STEPS = ("attention inputs", "attention", "ffn inputs", "ffn")


@pytest.fixture(scope="module")
def biased(tmp_path_factory, make_checkpoint):
    folder = tmp_path_factory.mktemp("biased") / "model"
    return make_checkpoint(folder, attention_bias=True, mlp_bias=True)


class Whole:
    """Dense and masked model in memory, and what their modules see of every sequence."""

    def __init__(self, folder, plan: Plan, masks: ExitStack):
        self.dense, self.cut = (
            make_linear(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)).eval()
            for _ in range(2)
        )
        geometry = BlockGeometry.of(Checkpoint(folder))
        self.family, self.times = geometry.family, geometry.times
        for layer, kept in zip(self.layers(self.cut), plan.blocks, strict=True):
            masks.enter_context(only_units(layer, geometry, kept))
        self.sequences = texts()
        count = len(self.sequences)
        self.held = [i in held_back(count, HELD_BACK) for i in range(count)]

    def layers(self, model):
        return model.get_submodule(self.family.layers)

    def seen(self, model, block: int, name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of every sequence, input and output [tokens, channels] of a module of a block, "" itself."""
        seen = []

        def keep(_, args, out) -> None:
            seen.append(tuple(x.flatten(0, -2) for x in (args[0], states_of(out))))

        handle = self.layers(model)[block].get_submodule(name).register_forward_hook(keep)
        with torch.no_grad():
            for sequence in self.sequences:
                model(sequence[None], use_cache=False)
        handle.remove()
        return seen

    def inputs(self, model, block: int, name: str) -> list[torch.Tensor]:
        return [x for x, _ in self.seen(model, block, name)]

    def outputs(self, model, block: int, name: str) -> list[torch.Tensor]:
        return [y for _, y in self.seen(model, block, name)]

    def after_attention(self, model, block: int) -> list[torch.Tensor]:
        """The streams between the sub-layers, which the FFN's norm need not see."""
        added = self.family.post_norms.get("attention", self.module("attention"))
        pairs = zip(self.inputs(model, block, ""), self.outputs(model, block, added), strict=True)
        return [x + self.times * y for x, y in pairs]

    def module(self, group: str) -> str:
        return self.family.output(group).removesuffix(".weight")

    def solve(self, inputs, targets, weight, step):
        """The solution with the recorded lambda (None: as it was); held-back errors before, after."""
        a, t = (
            torch.cat([x for x, h in zip(xs, self.held, strict=True) if not h])
            for xs in (inputs, targets)
        )
        held_a, held_t = (
            torch.cat([x for x, h in zip(xs, self.held, strict=True) if h])
            for xs in (inputs, targets)
        )
        new = weight
        if step["lambda"] is not None:
            gram = a.T @ a
            damping = step["lambda"] * gram.diagonal().mean() * torch.eye(len(gram))
            new = weight + (t - a @ weight.T).T @ a @ torch.linalg.inv(gram + damping)
        energy = held_t.square().sum()
        before, after = ((held_t - held_a @ w.T).square().sum() / energy for w in (weight, new))
        return new, before.item(), after.item()

    def local(self, block: int, group: str, before: list[torch.Tensor]) -> list[torch.Tensor]:
        """The streams after the dense sub-layer, where `before` are those before it."""
        former = self.layers(self.dense)[block]
        if group == "ffn":
            with torch.no_grad():
                return [x + self.times * ffn_of(former, self.family, x[None])[0] for x in before]
        given = iter(before)
        handle = former.register_forward_pre_hook(lambda _, args: (next(given)[None], *args[1:]))
        found = self.inputs(self.dense, block, self.family.entered("ffn"))
        handle.remove()
        return found


def run_beside(folder, kind):
    """Repair a model by streaming and as a whole, and compare every step."""
    checkpoint = Checkpoint(folder)
    plan, geometry = plan_of(checkpoint), BlockGeometry.of(checkpoint)
    repair, changes = repaired(folder, kind)
    with ExitStack() as masks:
        whole = Whole(folder, plan, masks)
        for block, changed in enumerate(changes):
            steps = repair.record[block]["steps"]
            assert steps.keys() <= {*STEPS}
            for group in ("attention", "ffn"):
                if f"{group} inputs" in steps:
                    correct(whole, block, group, steps[f"{group} inputs"])
                channels = channels_of(plan.blocks[block][group], geometry.channels(group))
                if group in steps:
                    refit(whole, block, group, channels, steps[group], kind)
            layer = whole.layers(whole.cut)[block]
            mine = cut_block(dict(layer.state_dict()), checkpoint, plan.blocks[block])
            for name, found in changed.items():
                assert (found - mine[name]).norm() <= 5e-3 * mine[name].norm(), name
    return changes


def correct(whole, block: int, group: str, step: dict) -> None:
    read = whole.family.groups()[group][0].module
    x, z = (whole.inputs(model, block, read) for model in (whole.cut, whole.dense))
    size = x[0].shape[1]
    aims = [b - a for a, b in zip(x, z, strict=True)]
    start = torch.zeros(size, size, dtype=torch.float64)
    correction, *errors = whole.solve(x, aims, start, step)
    assert errors == pytest.approx([step["before"], step["after"]], rel=1e-3)
    for part in whole.family.groups()[group]:
        if part.axis == 0 and part.tensor.endswith("weight"):
            weight = whole.layers(whole.cut)[block].get_parameter(part.tensor)
            weight.data += weight @ correction


def refit(whole, block: int, group: str, channels, step: dict, kind: str) -> None:
    if group == "attention":
        before, aims = whole.inputs(whole.cut, block, ""), whole.after_attention(whole.dense, block)
    else:
        before = whole.after_attention(whole.cut, block)
        aims = whole.outputs(whole.dense, block, "")
    if kind == "ridge-local":
        aims = whole.local(block, group, before)
    rates = [t.square().mean(-1, keepdim=True).rsqrt() for t in aims]
    name = whole.module(group)
    linear = whole.layers(whole.cut)[block].get_submodule(name)
    targets = [(t - b) / whole.times for t, b in zip(aims, before, strict=True)]
    if group in whole.family.post_norms:
        targets = whole.outputs(whole.dense, block, name)
        own = [t.square().mean(-1, keepdim=True).rsqrt() for t in targets]
        rates = [r * o for r, o in zip(rates, own, strict=True)]
    inputs = [x[:, channels] for x in whole.inputs(whole.cut, block, name)]
    weight = linear.weight[:, channels].detach()
    if linear.bias is not None:
        inputs = [torch.cat((x, torch.ones_like(x[:, :1])), 1) for x in inputs]
        weight = torch.cat((weight, linear.bias[:, None].detach()), 1)
    new, *errors = whole.solve(
        [a * r for a, r in zip(inputs, rates, strict=True)],
        [t * r for t, r in zip(targets, rates, strict=True)],
        weight,
        step,
    )
    assert errors == pytest.approx([step["before"], step["after"]], rel=1e-3, abs=1e-4)
    linear.weight.data[:, channels] = new[:, : len(channels)]
    if linear.bias is not None:
        linear.bias.data = new[:, -1]


OUTPUTS = {"self_attn.o_proj.weight", "mlp.down_proj.weight"}


def test_equals_the_same_with_whole_models(any_family):
    changes, family = run_beside(any_family, "ridge"), Checkpoint(any_family).family
    assert sum(family.output("ffn") in changed for changed in changes) >= len(changes) - 1
    readers = family.readers()
    assert all(readers[step][0] in changes[1] for step in (0, 2))


def test_local_targets_are_those_of_the_dense_sublayers(llama):
    changes = run_beside(llama, "ridge-local")
    assert all(changed.keys() <= OUTPUTS for changed in changes)
    assert sum(changed.keys() == OUTPUTS for changed in changes) >= len(changes) - 1


def test_biases_are_refitted_with_the_weights(biased):
    changes = run_beside(biased, "ridge")
    assert all({"self_attn.o_proj.bias", "mlp.down_proj.bias"} <= c.keys() for c in changes)


def test_bias_moves_biases_alone_and_by_the_mean(biased):
    repair, changes = repaired(biased, "bias")
    for block, changed in enumerate(changes):
        assert changed.keys() <= {"self_attn.o_proj.bias", "mlp.down_proj.bias"}
        for step in repair.record[block]["steps"].values():
            assert step["after"] <= step["before"]
    # In the first attention the removed heads' part is lost, and its weighted mean is folded in.
    checkpoint = Checkpoint(biased)
    with ExitStack() as masks:
        whole = Whole(biased, plan_of(checkpoint), masks)
        after, cut = (
            whole.inputs(m, 0, "post_attention_layernorm") for m in (whole.dense, whole.cut)
        )
    fitted = [i for i, held in enumerate(whole.held) if not held]
    a, c = (torch.cat([xs[i] for i in fitted]) for xs in (after, cut))
    rate = 1 / a.square().mean(-1, keepdim=True)
    mean = (
        (rate * (a - c)).sum(0)
        / rate.sum()
        / (1 + repair.record[0]["steps"]["attention"]["lambda"])
    )
    old = whole.layers(whole.dense)[0].self_attn.o_proj.bias
    found = changes[0]["self_attn.o_proj.bias"]
    torch.testing.assert_close(found.double(), (old + mean).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "missing"), [({}, "self_attn.o_proj.bias"), ({"attention_bias": True}, "mlp.down")]
)
def test_bias_needs_biases(make_checkpoint, tmp_path, sizes, missing):
    folder = make_checkpoint(tmp_path / "m", **sizes)
    with pytest.raises(InputError, match=f"{missing}.*does not have; use --repair ridge"):
        repaired(folder, "bias")


@pytest.mark.parametrize("kind", [k for k in KINDS if k.startswith("ridge")])
def test_held_back_errors_never_grow(llama, kind):
    repair, changes = repaired(llama, kind)
    for block, changed in zip(repair.record, changes, strict=True):
        for name, step in block["steps"].items():
            assert step["after"] < step["before"] or step["lambda"] is None, name
        assert block["tensors"] == sorted(changed)


def test_nothing_changes_where_nothing_is_cut(llama):
    checkpoint = Checkpoint(llama)
    everything = {g: [*range(n)] for g, n in checkpoint.units.items()}
    _, changes = repaired(llama, plan=plan_of(checkpoint, everything))
    assert changes == [{}] * checkpoint.blocks
    _, changes = repaired(llama, plan=Plan([everything, PLAN, everything]))
    assert changes[0] == {} and "mlp.down_proj.weight" in changes[1]
    assert "mlp.down_proj.weight" in changes[2]  # it mends what the one before it broke


def test_stored_dtype_and_determinism(make_checkpoint, tmp_path):
    folder = make_checkpoint(tmp_path / "m", dtype=torch.bfloat16)
    first, second = (repaired(folder) for _ in range(2))
    assert all(t.dtype == torch.bfloat16 for changed in first[1] for t in changed.values())
    assert first[0].about == second[0].about


def test_activations_in_files_give_the_same_and_leave_nothing(llama, tmp_path):
    _, expected = repaired(llama)
    _, found = repaired(llama, place=tmp_path)
    for a, b in zip(expected, found, strict=True):
        assert all(torch.equal(a[n], b[n]) for n in a)
    assert not [*tmp_path.iterdir()]


def test_fewer_tokens_than_channels(llama):
    repair, changes = repaired(llama, sequences=[s[:10] for s in texts(2)])
    assert all(t.isfinite().all() for changed in changes for t in changed.values())
    assert "10 calibration tokens for 24 inputs" in repair.warnings[0]


def test_what_is_left_out_is_counted_and_listed_in_the_record(llama):
    repair, _ = repaired(llama, sequences=[s[:10] for s in texts(2)])
    steps = [
        (f"{name} of block {index}", step["lambda"])
        for index, block in enumerate(repair.record)
        for name, step in block["steps"].items()
    ]
    left_out = [name for name, taken in steps if taken is None]
    assert left_out and repair.about["left_out"] == left_out
    assert f" in {len(left_out)} of {len(steps)} steps; " in repair.warnings[1]
    assert "untrained" not in repair.about


def test_blocks_that_training_leaves_are_counted_and_listed_in_the_record(llama, monkeypatch):
    worthwhile = iter([0.002, 1.0, 0.002])  # whatever it gains, block 1 is not worth it
    refined = one_block.refine

    def one_left(*args, **options):
        monkeypatch.setattr(training, "WORTHWHILE", next(worthwhile))
        return refined(*args, **options)

    monkeypatch.setattr(one_block, "refine", one_left)
    repair, changes = repaired(llama, "refine")
    plain, closed = repaired(llama, "ridge", plan=plan_of(Checkpoint(llama)))
    told = [steps["steps"]["refine"] for steps in repair.record]
    assert repair.about["untrained"] == [1] and repair.about["epochs"] == 1
    assert [step["after"] < step["losses"][0] for step in told] == [True, False, True]
    assert [step["rate"] is None for step in told] == [False, True, False]
    assert all(step["trials"] for step in told)
    (warning,) = [w for w in repair.warnings if "Training" in w]
    assert warning.startswith("Training did not pay on held-back text in 1 of 3 blocks; ")
    assert "untrained" not in plain.about
    assert not any(torch.equal(changes[0][n], closed[0][n]) for n in closed[0])


def test_the_last_loss_is_the_divergence_that_the_written_model_has(
    any_family, equal_layout, tmp_path
):
    repair, changes = repaired(any_family, "refine")
    told = [block["steps"]["refine"] for block in repair.record]
    assert any(step["after"] < step["losses"][0] for step in told)
    checkpoint = Checkpoint(any_family)
    write(checkpoint, plan_of(checkpoint), tmp_path / "out", equal_layout, changes=changes)
    with torch.no_grad():
        theirs, ours = (
            AutoModelForCausalLM.from_pretrained(
                folder, trust_remote_code=equal_layout == "per-layer"
            )(texts()[held_back(len(texts()), HELD_BACK)[0]][None]).logits[0]
            for folder in (any_family, tmp_path / "out")
        )
    found = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=x) for x in (theirs, ours))
    )
    assert found.mean().item() == pytest.approx(told[-1]["after"], rel=1e-3)


def test_bad_input(llama, tmp_path, make_checkpoint):
    with pytest.raises(InputError, match="at least 2 sequences, not 1"):
        repaired(llama, sequences=texts(1))
    with pytest.raises(
        InputError, match="'glue' is not one of ridge, ridge-local, refine, bias, none"
    ):
        repaired(llama, "glue")
    folder = make_checkpoint(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1e38
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"block 1 \(ffn\) are not finite"):
        repaired(folder)
