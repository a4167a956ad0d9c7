"""Several ranks make what one process does, and end together."""

import json

import pytest
import torch
from jobs import compress, left_over, stage
from safetensors.torch import load_file

from compressor.model.ranks import Alone
from compressor.repairing.streaming import share
from compressor.scoring.scores import Scores
from compressor.text.tokens import TokenSet
from compressor.writing.record import RECORD
from compressor.writing.shards import SINGLE


def plan_of(folder) -> dict:
    return json.loads((folder / RECORD).read_text())["plan"]


def distance(one, other) -> float:
    """The largest of the tensors' |a - b| / |a|."""
    first, second = (load_file(folder / SINGLE) for folder in (one, other))
    assert {n: t.shape for n, t in first.items()} == {n: t.shape for n, t in second.items()}
    return max(((first[n] - second[n]).norm() / first[n].norm()).item() for n in first)


# Sums of float32 in another order, and what a regression with a small lambda makes of that.
@pytest.mark.parametrize(
    ("world", "repair", "close"), [(2, "ridge", 2e-3), (3, "refine:1", 2e-3), (3, "none", 0)]
)
def test_ranks_make_what_one_process_does(
    llama, seven, whole, started, tmp_path, world, repair, close
):
    options = ["--keep", 0.7, "--repair", repair, *seven]
    ended = started(world, "compress", llama, tmp_path / "out", *options)
    assert ended.codes == [0] * world, ended.errors
    one = whole(llama, *options)
    assert plan_of(tmp_path / "out") == plan_of(one)
    assert distance(one, tmp_path / "out") <= close
    assert left_over(tmp_path / "out") == ["out"]


def test_the_stage_score(llama, seven, started, tmp_path):
    options = seven[:-1]
    assert stage("score", llama, "--out", tmp_path / "one", *options) == 0
    assert started(2, "score", llama, "--out", tmp_path / "two", *options).codes == [0, 0]
    one, two = (Scores.load(tmp_path / name) for name in ("one", "two"))
    for mine, theirs in zip(one.blocks, two.blocks, strict=True):
        for group in mine:
            torch.testing.assert_close(mine[group], theirs[group], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("method", "close"), [("sparsegpt", 1e-4), ("besa", None)])
def test_sparsify(llama, seven, started, tmp_path, method, close):
    options = ["--sparsity", 0.5, "--method", method, *seven]
    assert compress(llama, tmp_path / "one", *options) == 0
    ended = started(3, "sparsify", llama, tmp_path / "three", *options)
    assert ended.codes == [0, 0, 0], ended.errors
    if close is not None:
        assert distance(tmp_path / "one", tmp_path / "three") < close
        return
    one, three = (
        json.loads((tmp_path / name / RECORD).read_text())["sparsity"] for name in ("one", "three")
    )
    assert one["zeros"] == three["zeros"]
    for mine, theirs in zip(one["blocks"], three["blocks"], strict=True):
        assert theirs["error"] == pytest.approx(mine["error"], rel=0.5)


# -- what ends them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_lost_rank_ends_the_job_and_it_goes_on_with_others(
    llama, seven, whole, started, tmp_path, how
):
    options, dest = ["--keep", 0.7, "--repair", "ridge", *seven], tmp_path / "out"
    trouble = {"rank": 1, "at": 28, "how": how}
    ended = started(2, "compress", llama, dest, *options, trouble=trouble)
    assert ended.codes[0] == 4
    assert ended.said == (
        "compressor: Rank 1 of 2 is lost: its process has ended, or cannot be reached; any number of "
        f"ranks can go on. What is done is kept in {dest}.work; add --resume to go on."
    )
    assert left_over(dest) == ["out.work"]
    if how == "SIGKILL":
        again = started(3, "compress", llama, dest, *options, "--resume")
        assert again.codes == [0, 0, 0], again.errors
    else:
        assert compress(llama, dest, *options, "--resume") == 0
    assert plan_of(dest) == plan_of(whole(llama, *options))
    assert distance(whole(llama, *options), dest) < 2e-3


def test_a_signal_to_the_first_rank_ends_all(llama, seven, started, tmp_path):
    trouble = {"rank": 0, "at": 4, "how": "SIGTERM"}
    options = ["--keep", 0.7, *seven]
    ended = started(2, "compress", llama, tmp_path / "out", *options, trouble=trouble)
    assert ended.codes == [130, 130]
    assert ended.said.startswith(
        "compressor: interrupted in score, after block 1 of 3. What is done"
    )
    assert len(ended.sentences) == 1 and left_over(tmp_path / "out") == ["out.work"]


@pytest.mark.parametrize(
    ("how", "code", "sentence"),
    [
        ("DamagedError", 2, "compressor: DamagedError in a sum."),
        (
            "KeyError",
            1,
            "compressor: this is a bug of the program, OfARank: RuntimeError in rank 1:",
        ),
    ],
)
def test_what_goes_wrong_in_a_rank_is_said_by_the_first(
    llama, seven, started, tmp_path, how, code, sentence
):
    trouble = {"rank": 1, "at": 2, "how": how}
    ended = started(2, "compress", llama, tmp_path / "out", "--keep", 0.7, *seven, trouble=trouble)
    assert ended.codes == [code, code]
    (said,) = ended.sentences
    assert said.startswith(sentence) and ended.said == said
    assert left_over(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("world", "options", "others", "sentence"),
    [
        (2, [], ["--seed", 3], "Rank 1 has --seed 3, and rank 0 has 0; start all"),
        (2, ["--recover", "lora:9"], [], "--recover is not shared out among 2 ranks; cut without"),
        (2, ["--drop-blocks", 1], [], "--drop-blocks is not shared out among 2 ranks; start one"),
        (3, ["--samples", 3], [], "3 ranks have 2 sequences of the calibration text to share"),
    ],
)
def test_refusals(llama, seven, started, tmp_path, world, options, others, sentence):
    given = ["--keep", 0.7, *seven, *options]
    ended = started(world, "compress", llama, tmp_path / "out", *given, others=others)
    assert ended.codes == [2] * world
    (said,) = ended.sentences
    assert said.startswith(f"compressor: {sentence}")
    assert left_over(tmp_path / "out") == []


# -- parts ------------------------------------------------------------------------------------------


def place(rank: int, world: int) -> Alone:
    ranks = Alone()
    ranks.rank, ranks.world = rank, world
    return ranks


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_parts_are_all_of_it_in_order(world):
    items = list(range(7))
    parts = [place(rank, world).share(items) for rank in range(world)]
    assert [item for part in parts for item in part] == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("number", [0, 1, 5])
def test_a_step_is_shared_out_whole(world, number):
    sequences = [torch.arange(3, 9 + i) for i in range(7)]
    (step,) = TokenSet(sequences).batches(10_000)
    found: dict[int, list[int]] = {}
    for rank in range(world):
        mine, ahead = share(step, place(rank, world), number)
        if mine:
            found[ahead] = mine[0].real(mine[0].ids[..., None])[:, 0].tolist()
    together = [token for ahead in sorted(found) for token in found[ahead]]
    assert together == step.real(step.ids[..., None])[:, 0].tolist()
    assert [*sorted(found)] == [
        sum(len(found[before]) for before in found if before < ahead) for ahead in sorted(found)
    ]
