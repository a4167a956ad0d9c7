"""How long stages take, from steps whose times are known."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from jobs import decided

from compressor.config.amounts import size
from compressor.config.quantization import QuantConfig
from compressor.config.recovery import RecoveryConfig
from compressor.config.sparse import SparseConfig
from compressor.config.target import Target
from compressor.job.checks import solved_results
from compressor.job.depth.checks import outlined
from compressor.job.forecast import Forecast
from compressor.job.forecast.stages import (
    DRAWN,
    FRESH,
    WRITTEN,
    Load,
    repair,
    shares,
    stages,
    stages_of_weights,
    trained_tokens,
)
from compressor.job.schedule import Part
from compressor.model.checkpoint import Checkpoint
from compressor.recovery.data import Example, RecoveryData
from compressor.repairing.refine import FFN_EPOCHS
from compressor.text.tokens import TokenSet

BLOCKS, WEIGHTS = 3, 30_944  # of the llama of the tests
FORWARD, SCORED, TRAINED, PREDICTED, WIDENED = 0.001, 0.002, 0.01, 0.0005, 1e-5


class Bench:
    """Every step takes what is said above; algebra 1 s a block, sums nothing."""

    stream = SimpleNamespace(dtype=torch.float32)
    geometry = SimpleNamespace(channels=lambda group: {"attention": 8, "ffn": 1}[group])
    forward = staticmethod(lambda: FORWARD)
    scored = staticmethod(lambda method, mode: SCORED)
    trained = staticmethod(lambda ffn_alone=False: TRAINED / 4 if ffn_alone else TRAINED)
    predicted = staticmethod(lambda: PREDICTED)
    told_apart = staticmethod(lambda: 0.002)
    widened = staticmethod(lambda: WIDENED)
    summed = staticmethod(lambda *_: 0.0)
    eliminated = staticmethod(lambda channels, units: 1.0)
    regressed = staticmethod(lambda channels: 1.0)


def tokens(count: int) -> TokenSet:
    return TokenSet([torch.zeros(64, dtype=torch.long) for _ in range(count)])


@pytest.fixture
def make(llama, tmp_path):
    """A job that measures on ten sequences of 64 tokens and calibrates on so many."""

    def load(calibrating: int = 32, data=None, **options) -> Load:
        targets = options.pop("targets", [Target("keep", 0.7)])
        given = {"samples": calibrating} | options
        if "sparse" not in options:
            given = {"align": 1} | given
        config = decided(llama, tmp_path / "out", targets, **given)
        checkpoint = Checkpoint(llama)
        assert (checkpoint.blocks, checkpoint.parameters) == (BLOCKS, WEIGHTS)
        checkpoint = outlined(config.plan, checkpoint)
        wanted = solved_results(config, checkpoint) if config.cuts else []
        texts = tokens(calibrating) if calibrating else None, tokens(10)
        return Load(config, checkpoint, *texts, data, wanted)

    return load


def seconds(job: Load, of=stages) -> dict[str, float | None]:
    return {f"{p.stage} {p.of}".strip(): p.seconds for p in of(job, Bench())}


def test_a_job_without_repair(make):
    job = make(method="llm-bip", repair="none")
    found = seconds(job)
    (widths,) = {tuple(block.items()) for block in job.wanted[0].widths}
    share = sum(n for _, n in widths) / (4 + 48)
    written = DRAWN + job.checkpoint.bytes * share / WRITTEN
    assert list(found) == [
        "score",
        "evaluate",
        "write keep-0.7",
        "verify keep-0.7",
        "evaluate keep-0.7",
    ]
    assert found["score"] == pytest.approx(BLOCKS * 32 * 64 * SCORED)
    assert found["evaluate"] == pytest.approx(640 * (BLOCKS * FORWARD + PREDICTED))
    assert found["write keep-0.7"] == pytest.approx(written)
    assert found["verify keep-0.7"] == pytest.approx(FRESH + (1 + share) * 2 * WEIGHTS * WIDENED)
    after = 640 * (share * (BLOCKS * FORWARD + PREDICTED) + PREDICTED)
    assert found["evaluate keep-0.7"] == pytest.approx(after)


def test_dropped_blocks_are_found_and_folded(make):
    a_pass = BLOCKS * 2048 * FORWARD
    alone = seconds(make(targets=[], align=None, drop_blocks=1, verify=False))
    assert [*alone] == [
        "influence",
        "fold",
        "evaluate",
        "repair drop-blocks-1",
        "evaluate drop-blocks-1",
    ]
    assert (alone["influence"], alone["fold"]) == pytest.approx((a_pass, 2 * a_pass))
    auto = seconds(make(drop_blocks="auto", repair="none", verify=False, fold=False))
    assert [*auto][:4] == ["score", "influence", "depth", "evaluate"] and auto["depth"] is None


def test_selection_and_closed_form(make):
    found = seconds(make(repair="ridge", select="obs", verify=False))
    assert found["select"] == pytest.approx(BLOCKS * (2048 * FORWARD + 2))
    many = seconds(make(64, repair="ridge", select="obs", verify=False))
    assert many["select"] - found["select"] == pytest.approx(BLOCKS * 2048 * FORWARD)
    more = many["repair keep-0.7"] - found["repair keep-0.7"]
    assert (
        BLOCKS * 2048 * FORWARD < more < 4 * BLOCKS * 2048 * FORWARD
    )  # two paths, one of them cut
    assert found["repair keep-0.7"] - more > BLOCKS * 4 * 1.0  # four regressions


def test_a_training_takes_longer_with_every_epoch(make):
    once, thrice = (seconds(make(64, refine_epochs=n))["repair keep-0.7"] for n in (1, 3))
    plain = seconds(make(64, repair="ridge"))["repair keep-0.7"]
    assert plain < once < thrice
    fitted = 60 * 64  # tokens that are not held back
    assert (
        0.5 < (thrice - once) / (2 * fitted * BLOCKS * TRAINED) <= 1.3
    )  # narrower, and the last head


def test_an_ffn_alone_is_trained_oftener_in_cheaper_steps(make):
    """Where no attention is cut; a pass takes a quarter, there are two but at the end, and three of the
    regressions are left out.
    """
    alone, both = ({"ffn": 20, "attention": groups} for groups in (4, 3))
    load, ridge = make(64), make(64, repair="ridge")
    assert load.checkpoint.units["attention"] == 4
    fitted = 60 * 64
    for block, epochs, step in ((alone, FFN_EPOCHS, TRAINED / 4), (both, 1, TRAINED)):
        widths = [block] * BLOCKS
        share = shares(load.checkpoint, widths)
        trained, plain = (repair(job, Bench(), FORWARD, widths) for job in (load, ridge))
        spent = trained.seconds - trained.more - plain.seconds
        if block is alone:
            spent += BLOCKS * (3 * 1.0 + 64 * 64 * FORWARD * share)
        assert trained.more == pytest.approx(trained_tokens(load, 1) * 0.002)
        judged = trained_tokens(load, 1) - fitted  # trials and held-back losses
        tokens = (BLOCKS - 1) * (epochs * fitted + judged) + fitted + judged
        assert spent == pytest.approx(share * step * tokens)


def test_the_last_block_is_trained_toward_predictions(make):
    once, thrice = (
        next(p for p in stages(make(64, refine_epochs=n), Bench()) if p.stage == "repair")
        for n in (1, 3)
    )
    assert thrice.more - once.more == pytest.approx(2 * 60 * 64 * 0.002)
    ridge = next(p for p in stages(make(64, repair="ridge"), Bench()) if p.stage == "repair")
    assert ridge.more == 0 and once.seconds > ridge.seconds + once.more


@pytest.mark.parametrize("method", ["hywia", "taylor"])
def test_a_backward_takes_a_forward_and_the_loss(make, method):
    found = seconds(make(method=method, repair="none"))
    assert found["score"] == pytest.approx(2048 * (BLOCKS * (SCORED + FORWARD) + 3 * PREDICTED))


def test_every_result_has_its_stages(make):
    targets = [Target("keep", 0.9), Target("keep", 0.7)]
    found = seconds(make(targets=targets, repair="ridge"))
    assert [n for n in found if n.startswith("repair")] == ["repair keep-0.9", "repair keep-0.7"]
    assert found["repair keep-0.9"] > found["repair keep-0.7"]
    assert [n for n in found if n.startswith("score")] == ["score"]


def test_a_recovery(make):
    ids = torch.zeros(50, dtype=torch.long)
    data = RecoveryData([Example(ids, ids)] * 20, [])
    lora, distill = (
        seconds(make(data=data, recovery=RecoveryConfig(method, steps=30, batch=4)))[
            "recover keep-0.7"
        ]
        for method in ("lora", "distill")
    )
    assert 0.3 < lora / (30 * 4 * 50 * 3 * (BLOCKS * FORWARD + PREDICTED)) < 1
    assert distill - lora == pytest.approx(1000 * (BLOCKS * FORWARD + PREDICTED))


@pytest.mark.parametrize(
    ("options", "unknown"),
    [
        ({"allocate": "exact"}, {"allocate", "compare keep-0.7"}),
        ({"kv_cost": "measured"}, {"select"}),
        (
            {"quantization": QuantConfig("w4a16", group=32), "targets": [Target("keep", 0.9)]},
            {"quantize keep-0.9"},
        ),
    ],
)
def test_what_nobody_knows_is_left_open(make, options, unknown):
    found = seconds(make(**options))
    assert {stage for stage, length in found.items() if length is None} == unknown


def test_single_weights(make):
    job = make(targets=(), sparse=SparseConfig(sparsity=0.5))
    found = seconds(job, stages_of_weights)
    assert list(found) == ["evaluate", "prune", "verify"]  # the last of two is shown
    assert found["prune"] == pytest.approx(BLOCKS * 2048 * (TRAINED + 3 * FORWARD))
    other = replace(job, config=job.config.with_options(method="sparsegpt"))
    assert seconds(other, stages_of_weights)["prune"] is None


def test_it_is_said_in_a_sentence():
    parts = [Part("score", 30.0), Part("repair", 200.0, "a"), Part("repair", 250.0, "b")]
    found = Forecast(
        [*parts, Part("quantize", None), Part("write", 0.1)], 2_500_000_000, 10**9, 3 * 10**9
    )
    assert str(found) == (
        "about 8 min and what quantize takes (repair 8 min, score 30 s); 2.50 GB of memory; "
        "3.00 GB of disk, of which 1.00 GB stay"
    )
    assert found.told["seconds"] == {"score": 30.0, "repair": 450.0, "quantize": None, "write": 0.1}


@pytest.mark.parametrize(
    ("count", "words"),
    [(1, "1 KB"), (8_200_000, "9 MB"), (99_999_999, "100 MB"), (10**8, "0.10 GB")],
)
def test_sizes(count, words):
    assert size(count) == words
