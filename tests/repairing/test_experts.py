"""The repair of a mixture: its regressions against normal equations in float64, and what it mends."""

import pytest
import torch
from jobs import compress, said, stage
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import compressor
from compressor.config.json_files import read_object
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.experts import inner_of, only_experts
from compressor.model.modules import loaded
from compressor.model.stream import BlockStream
from compressor.planning.plan import Plan
from compressor.repairing.losses import relative_distance
from compressor.repairing.streaming import Repair, check_repair
from compressor.text.tokens import TokenSet
from compressor.verification.child import verify_here

KEPT = [0, 2, 3, 5]
DOWN = "mlp.experts.down_proj"


@pytest.fixture(scope="module")
def tokens() -> TokenSet:
    generator = torch.Generator().manual_seed(1)
    return TokenSet([torch.randint(3, 100, (30,), generator=generator) for _ in range(64)])


@pytest.fixture
def plan(mixture) -> Plan:
    return Plan([{"attention": [*range(4)], "ffn": KEPT}] * Checkpoint(mixture).blocks)


@torch.no_grad()
def by_hand(source, sequences, fitted, lambdas) -> tuple[torch.Tensor, list[float]]:
    """The output projections of the first block's kept experts, and the error before and after on what
    is held back, as a share of what the first refit aims at.
    """
    stream = BlockStream(source, dtype=torch.float64)
    stream.model.set_experts_implementation("eager")  # the other has no float64
    states, calls = stream.record([ids[None] for ids in sequences])
    weights = stream.cast(source.read_block(0))
    down = weights[DOWN][KEPT].clone()
    rows: dict[str, list] = {name: [] for name in ("read", "chosen", "weights", "left", "rate")}

    def take(_, args) -> None:
        for name, value in zip(("read", "chosen", "weights"), args, strict=True):
            rows[name].append(value)

    with loaded(stream.layers[0], weights) as layer:
        for i in range(len(sequences)):
            args, call = calls[i][0]
            x = states.get(i, stream.device)
            out = layer(x, *args, **call)
            rows["rate"].append(out[0].square().mean(-1, keepdim=True).rsqrt())
            with (
                only_experts(layer, source.family.experts, KEPT),
                layer.mlp.experts.register_forward_pre_hook(take),
            ):
                rows["left"].append((out - layer(x, *args, **call))[0])
        parts = {name: (torch.cat(v[:fitted]), torch.cat(v[fitted:])) for name, v in rows.items()}
        errors = [(parts["left"][1] * parts["rate"][1]).square().sum().item()]
        for place, expert in enumerate(KEPT):
            fed = []
            for side in (0, 1):
                at, which = torch.where(parts["chosen"][side] == expert)
                inner = inner_of(layer.mlp.experts, expert, parts["read"][side][at])
                fed.append((at, inner * parts["weights"][side][at, which, None]))
            at, a = fed[0]
            rate = parts["rate"][0][at]
            gram, residual = (a * rate).T @ (a * rate), (parts["left"][0][at] * rate).T @ (a * rate)
            if lambdas[place] is not None:
                damped = gram + lambdas[place] * gram.diagonal().mean() * torch.eye(len(gram))
                change = torch.linalg.solve(damped, residual.T).T
                down[place] += change
                for side, (at, a) in enumerate(fed):
                    parts["left"][side][at] -= a @ change.T
        errors.append((parts["left"][1] * parts["rate"][1]).square().sum().item())
    return down, errors


def test_each_expert_is_refitted_on_the_tokens_that_now_reach_it(mixture, plan, tokens):
    source = Checkpoint(mixture)
    repair = Repair(BlockStream(source, dtype=torch.float32), plan, tokens, "ridge")
    first = next(repair.blocks())
    steps = repair.record[0]["steps"]
    assert steps.keys() == {f"expert {i}" for i in range(4)} and first.keys() == {DOWN}
    fitted, held = tokens.split(16)
    lambdas = [steps[f"expert {i}"]["lambda"] for i in range(4)]
    assert any(lambdas)
    sequences = [*fitted.sequences, *held.sequences]
    expected, (before, after) = by_hand(source, sequences, len(fitted.sequences), lambdas)
    torch.testing.assert_close(first[DOWN].double(), expected, rtol=2e-3, atol=2e-4)
    assert after < before


@pytest.mark.parametrize("kind", ["ridge", "refine", "ridge-local"])
def test_the_block_comes_nearer_to_the_dense_one(mixture, plan, tokens, kind):
    """Of the first block, whose input no cut changes; on text that nothing was fitted to."""
    source = Checkpoint(mixture)
    stream = BlockStream(source)
    repair = Repair(stream, plan, tokens, kind)
    changed = next(repair.blocks())
    fresh = [torch.randint(3, 100, (32, 30), generator=torch.Generator().manual_seed(2))]
    states, calls = stream.record(fresh)
    (args, call), x = calls[0][0], states.get(0, stream.device)

    def error(tensors: dict[str, torch.Tensor]) -> float:
        weights = source.read_block(0)
        with torch.no_grad(), loaded(stream.layers[0], weights) as layer:
            dense = layer(x, *args, **call)
        whole = {n: w.clone() for n, w in weights.items()}
        for name, tensor in tensors.items():
            whole[name][KEPT] = tensor
        experts = source.family.experts
        with (
            torch.no_grad(),
            loaded(stream.layers[0], whole) as layer,
            only_experts(layer, experts, KEPT),
        ):
            return relative_distance(layer(x, *args, **call), dense).mean().item()

    assert error(changed) < error({})


@pytest.mark.parametrize("form", ["single", "fused"])
def test_a_job_of_experts(mixture, text_file, tmp_path, form, capsys):
    """Scored by reap, repaired, written as the source is, verified against it, its card says experts."""
    from experts import fuse

    folder = fuse(mixture, tmp_path / "model") if form == "fused" else mixture
    given = ["--calibration", text_file, "--length", 32, "--samples", 6, "--no-verify"]
    assert compress(folder, tmp_path / "out", "--keep-blocks", 0.6, *given) == 0
    assert "2 to 6 experts of a block can stay" in said(capsys)
    record = read_object(tmp_path / "out/compression.json")
    assert record["plan"]["about"]["scores"]["method"] == "reap"
    assert {len(block["ffn"]) for block in record["plan"]["blocks"]} == {3}
    assert {len(block["attention"]) for block in record["plan"]["blocks"]} == {4}
    assert record["repair"]["kind"] == "refine"
    found = verify_here(tmp_path / "out", folder)
    assert found["logits_difference"] <= 1e-3
    card = (tmp_path / "out/README.md").read_text()
    assert "3 of 6 experts" in card
    names = load_file(tmp_path / "out/model.safetensors").keys()
    assert any("experts.gate_up_proj" in name for name in names) is (form == "fused")


def test_a_job_of_fewer_blocks_and_experts(random_family, text_file, tmp_path):
    """What the block did is folded into experts and the shared one, before others of them go."""
    folder = random_family("qwen2_moe")
    given = ["--calibration", text_file, "--length", 32, "--samples", 6]
    both = ["--drop-blocks", 1, "--keep-blocks", 0.5, "--repair", "none"]
    assert compress(folder, tmp_path / "out", *both, *given) == 0
    record = read_object(tmp_path / "out/compression.json")
    folded = {name for block in record["folded"]["blocks"] for name in block["tensors"]}
    assert folded == {DOWN, "mlp.shared_expert.down_proj.weight"}
    assert record["plan"]["about"]["dropped"] and len(record["plan"]["blocks"]) == 2
    assert len({len(block["ffn"]) for block in record["plan"]["blocks"]} - {6}) == 1


def test_a_job_of_channels_of_experts(mixture, text_file, tmp_path, capsys):
    """In one command, in stages and from Python the same; verified against the source without them."""
    text = ["--calibration", text_file, "--length", 32, "--samples", 6]
    within = ["--experts", "channels"]
    job = ["--keep-blocks", 0.6, "--no-verify", *within, *text]
    assert compress(mixture, tmp_path / "out", *job) == 0
    assert "4 to 16 channels of every expert can stay, multiples of 4" in said(capsys)
    record = read_object(tmp_path / "out/compression.json")
    assert record["plan"]["about"]["scores"]["method"] == "llm-bip"
    assert {len(block["ffn"]) for block in record["plan"]["blocks"]} == {6 * 8}
    assert {f"expert {i}" for i in range(6)} < record["repair"]["blocks"][0]["steps"].keys()
    assert verify_here(tmp_path / "out", mixture)["logits_difference"] <= 1e-3
    assert "50% of the channels of every expert" in (tmp_path / "out/README.md").read_text()

    scores, plan = tmp_path / "scores.safetensors", tmp_path / "plan.json"
    assert stage("score", mixture, "--out", scores, *within, *text) == 0
    assert stage("plan", scores, "--out", plan, "--keep-blocks", 0.6) == 0
    assert "48 channels of experts a block" in capsys.readouterr().out
    cut = ["--plan", plan, "--no-verify", *text]
    assert stage("cut", mixture, tmp_path / "again", *cut) == 0
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)

    model = AutoModelForCausalLM.from_pretrained(mixture)
    rated = compressor.score(model, method="magnitude", experts="channels")
    small = compressor.cut(model, compressor.plan(rated, keep_blocks=0.6))
    assert small.config.moe_intermediate_size == 8 and small.config.num_experts == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "llm-bip"), "or random, or --experts channels"),
        (("--experts", "channels", "--method", "reap"), "is one of its channels of experts; use"),
        (("--experts", "channels", "--layout", "padded"), "as many channels of experts in all"),
        (("--experts", "channels", "--budget", "flops"), "What goes of experts is counted in"),
        (
            (
                "--experts",
                "half",
            ),
            "--experts must be whole or channels, not 'half'",
        ),
        (("--method", "llm-bip"), "use --method reap, taylor, taylor-vector"),
        (("--select", "obs"), "--select obs and --kv-cost measured are for channels and heads"),
        (("--allocate", "exact"), "the units of qwen3_moe are experts; use --allocate uniform"),
        (("--layout", "padded"), "--layout padded is for channels and heads"),
        (("--layout", "nas"), "not for qwen3_moe"),
        (("--quantize", "w4a16"), "--quantize packs projections of one FFN"),
        (("--budget", "flops"), "An expert that goes saves no work"),
        (("--repair", "bias"), "which the experts of qwen3_moe have not"),
    ],
)
def test_what_experts_do_not_take_is_said_at_once(mixture, tmp_path, options, message, capsys):
    assert compress(mixture, tmp_path / "out", "--keep-blocks", 0.6, *options) == 2
    assert message in said(capsys)
    assert not (tmp_path / "out").exists()


def test_biases_are_not_moved(mixture):
    with pytest.raises(InputError, match="use --repair refine or ridge"):
        check_repair("bias", None, Checkpoint(mixture))
