"""Which multiple FFN widths are of, on shapes of real models, and what is said of it."""

import json
from functools import cache

import pytest
from headers import write_headers
from jobs import compress, said, stage

from compressor.config.choices import ALLOCATIONS
from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.planning.alignment import ANY
from compressor.planning.allocation import alignment, allocate
from compressor.planning.costs import CLOSE, Costs, miss_of
from compressor.planning.lattice import CHOICE, MULTIPLES, Wanted
from compressor.planning.told import KERNELS, described, in_words, kernels, width_notes
from compressor.planning.uniform import constant_splits, everywhere, solve
from compressor.scoring.score import score

SHARES = (0.95, 0.9, 0.8, 0.7, 0.5)


@pytest.fixture(scope="module")
def shaped(tmp_path_factory):
    """The headers of a real model by its name."""

    @cache
    def opened(name: str) -> Checkpoint:
        return Checkpoint(write_headers(name, tmp_path_factory.mktemp("shapes") / "model"))

    return opened


def missed(target: Target, checkpoint: Checkpoint, widths) -> float:
    costs = Costs.of(checkpoint, target.budget)
    return miss_of(target, costs, costs.size(widths, target.measure))


# By share, for --keep and --keep-blocks; Gemma's blocks are 0.37 of it, so it cannot be half.
MULTIPLES_OF = {
    "SmolLM2-135M": [(128, 256, 256, 32, 32), (32, 16, 32, 32, 16)],
    "Gemma 3 270M": [(128, 256, 256, None, None), (16, 32, 64, 32, 32)],
    "Qwen2-0.5B": [(128, 256, 256, 256, 128), (256, 64, 64, 128, 64)],
    "TinyLlama-1.1B": [(128, 64, 128, 256, 256), (128, 64, 128, 256, 256)],
    "LLaMA-7B": [(256, 256, 128, 256, 256), (128, 128, 256, 256, 128)],
    "Llama-2-70B": [(256,) * 5, (256,) * 5],
}


@pytest.mark.parametrize("name", MULTIPLES_OF)
def test_a_share_is_met_by_the_widest_multiple_that_does(shaped, name):
    checkpoint = shaped(name)
    for kind, expected in zip(("keep", "keep-blocks"), MULTIPLES_OF[name], strict=True):
        for share, multiple in zip(SHARES, expected, strict=True):
            target = Target(kind, share)
            found = alignment(target, checkpoint, Wanted())
            if multiple is None:
                with pytest.raises(InputError, match=r"reachable are 0\.74 to 1 of all parameters"):
                    solve(target, checkpoint, found.lattice)
                continue
            widths = solve(target, checkpoint, found.lattice)
            assert abs(missed(target, checkpoint, widths)) <= CLOSE
            assert found.align == multiple and widths[0]["ffn"] % multiple == 0
            assert found.taken.reached == pytest.approx(
                share + missed(target, checkpoint, widths), abs=1e-9
            )
            for wider in (m for m in MULTIPLES if m > multiple):
                steps = Wanted().lattice(checkpoint, wider)
                assert abs(missed(target, checkpoint, solve(target, checkpoint, steps))) > CLOSE
            assert (found.wider is None) == (multiple == MULTIPLES[0])


@pytest.mark.parametrize("name", MULTIPLES_OF)
@pytest.mark.parametrize("kind", ["params", "bytes"])
@pytest.mark.parametrize("share", [0.9, 0.8])
def test_a_bound_is_never_exceeded(shaped, name, kind, share):
    checkpoint = shaped(name)
    whole = checkpoint.parameters if kind == "params" else checkpoint.bytes
    target = Target(kind, int(share * whole))
    found = alignment(target, checkpoint, Wanted())
    assert -CLOSE <= missed(target, checkpoint, solve(target, checkpoint, found.lattice)) <= 0


@pytest.mark.parametrize("name", ["SmolLM2-135M", "Qwen2-0.5B", "LLaMA-7B"])
@pytest.mark.parametrize("kind", ["keep", "keep-blocks", "params"])
@pytest.mark.parametrize("share", [0.9, 0.6])
def test_all_splits_that_are_compared_are_about_as_large(shaped, name, kind, share):
    """Of whatever number of KV groups, with room enough to choose from."""
    checkpoint = shaped(name)
    target = Target(kind, share * (checkpoint.parameters if kind == "params" else 1))
    found = alignment(target, checkpoint, Wanted(), how="measured")
    assert len(found.lattice.ffn) >= CHOICE
    splits = constant_splits(target, checkpoint, found.lattice)
    misses = [missed(target, checkpoint, everywhere(s, checkpoint, [])) for s in splits]
    assert all(-CLOSE <= miss <= (0 if target.hard else CLOSE) for miss in misses)
    finest = constant_splits(target, checkpoint, Wanted().lattice(checkpoint, 1))
    assert [s["attention"] for s in splits] == [s["attention"] for s in finest]


@pytest.mark.parametrize("name", MULTIPLES_OF)
def test_what_is_measured_before_there_is_a_target_serves_all_shares(shaped, name):
    checkpoint = shaped(name)
    measured = {*alignment(ANY, checkpoint, Wanted(), how="exact").lattice.ffn}
    for kind in ("keep", "keep-blocks"):
        for share in SHARES[:-2]:
            own = alignment(Target(kind, share), checkpoint, Wanted(), how="exact").lattice
            assert measured.issuperset(own.ffn)


@pytest.mark.parametrize("how", ALLOCATIONS)
def test_a_multiple_that_is_asked_for_is_taken(shaped, how):
    checkpoint = shaped("SmolLM2-135M")
    found = alignment(Target("keep", 0.7), checkpoint, Wanted(align=512), how=how)
    assert found.lattice.ffn == [512, 1024, 1536] and found.wider is None


def test_a_miss_by_what_was_asked_names_what_would_do(shaped):
    checkpoint = shaped("SmolLM2-135M")

    def notes(**options) -> list[str]:
        found = alignment(Target("keep", 0.7), checkpoint, Wanted(**options))
        widths = solve(Target("keep", 0.7), checkpoint, found.lattice)
        assert width_notes(found, checkpoint) == width_notes(found, checkpoint, widths)
        return width_notes(found, checkpoint)

    assert notes() == notes(align=32) == []
    assert notes(align=128) == [
        "What stays is 0.6876 of all parameters, 1.2 points below --keep 0.7: --align 32 would give "
        "0.6999."
    ]
    (bound,) = notes(tp=4)
    assert bound.endswith("--keep 0.7: --tp 4 shares FFN channels in multiples of 512.")
    (packed,) = notes(columns=64)
    assert packed.endswith("1.2 points above --keep 0.7: --quantize takes them in groups of 64.")


def test_the_next_wider_multiple_and_the_kernels_are_said(shaped):
    checkpoint = shaped("SmolLM2-135M")
    found = alignment(Target("keep", 0.7), checkpoint, Wanted())
    assert in_words(found) == (
        "FFN widths are multiples of 32 (0.6999 of all parameters; multiples of 64 would give 0.7122)."
    )
    about = described(found)
    assert about["align"] == 32 and about["align_wider"]["align"] == 64
    assert about["align_wider"]["reached"] == pytest.approx(0.7122, abs=1e-4)
    assert kernels([found]) == [KERNELS] and "Marlin" in KERNELS and "256" in KERNELS
    widest = alignment(Target("keep", 0.8), checkpoint, Wanted())
    assert widest.align == 256 and kernels([widest]) == []
    assert described(widest)["align_wider"] is None
    own = alignment(Target("keep", 0.7), checkpoint, Wanted(), how="exact")
    assert in_words(own) == (
        "FFN widths are multiples of 16 (sizes 0.62 points apart; multiples of 32 would give sizes 1.2 "
        "points apart)."
    )


@pytest.mark.parametrize("share", [0.9, 0.8])
def test_where_not_even_8_does_finer_ones_are_taken_and_said(llama, share):
    checkpoint = Checkpoint(llama)
    target = Target("keep", share)
    plan = allocate(score(checkpoint, "random"), checkpoint, target)
    assert plan.about["align"] < 8
    assert plan.about["keep_reached"] == pytest.approx(share, abs=CLOSE)
    found = alignment(target, checkpoint, Wanted())
    (note,) = width_notes(found, checkpoint, plan.widths())
    assert f"multiples of {plan.about['align']}, which kernels are not made for" in note
    assert note.endswith("; --align 8 takes them.")
    assert width_notes(alignment(target, checkpoint, Wanted(align=1)), checkpoint) == []


def test_groups_do_not_crowd_out_the_channels(make_checkpoint, tmp_path):
    """Two KV groups that are nearly all that may stay: one goes, and half of the channels stay."""
    sizes = {"hidden_size": 64, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64}
    checkpoint = Checkpoint(make_checkpoint(tmp_path / "m", **sizes))
    target = Target("keep-blocks", 0.63)
    costs = Costs.of(checkpoint)
    assert costs.unit["attention"]["params"] * 2 > 0.6 * costs.prunable / checkpoint.blocks
    width = solve(target, checkpoint, alignment(target, checkpoint, Wanted()).lattice)[0]
    assert width["attention"] == 1 and width["ffn"] > 32


@pytest.mark.parametrize("how", ["uniform", "global"])
@pytest.mark.parametrize("share", [0.996, 0.999])
def test_something_goes(llama, how, share):
    """The whole model is within half a point of such a share, and no answer."""
    checkpoint = Checkpoint(llama)
    plan = allocate(score(checkpoint, "random"), checkpoint, Target("keep", share), how=how)
    assert plan.about["parameters"] < checkpoint.parameters


def test_the_job_says_it_before_and_after(llama, text_file, tmp_path, capsys):
    options = ["--calibration", text_file, "--length", 32, "--samples", 4, "--no-verify"]
    options += ["--method", "random", "--repair", "none"]
    dest = tmp_path / "out"
    assert compress(llama, dest, "--keep", 0.9, "--align", 16, *options) == 0
    after, before = (" ".join(shown.split()) for shown in capsys.readouterr())
    assert before.index("FFN widths are multiples of 16 (") < before.index("write 3/3")
    for shown in (before, after):
        assert "4.9 points below --keep 0.9: --align 1 would give 0.8976." in shown
    record = json.loads((dest / "compression.json").read_text())
    assert record["align"] == record["plan"]["about"]["align"] == 16
    assert record["align_wider"] is None
    scores = tmp_path / "s.safetensors"
    assert stage("score", llama, "--out", scores, "--method", "magnitude", "--quiet") == 0
    assert stage("plan", scores, "--keep", 0.9, "--out", tmp_path / "p.json", "--align", 16) == 0
    assert "FFN widths are multiples of 16 (" in capsys.readouterr().out


def test_what_a_multiple_cannot_be(llama, tmp_path, capsys):
    for align, words in (
        (0, "at least 1, not 0"),
        (-8, "at least 1, not -8"),
        (49, "do not exist"),
    ):
        assert compress(llama, tmp_path / "out", "--keep", 0.9, "--align", align) == 2
        assert words in said(capsys)
