"""Verification accepts what is right, and nothing else."""

import json
import shutil

import pytest
import torch
from edits import edit_tensors
from jobs import compress
from verifying import MODULE, in_this_process

from compressor.config.target import Target
from compressor.errors import InputError, VerificationError
from compressor.job.result import make_record
from compressor.model.checkpoint import Checkpoint
from compressor.model.loading import prompt_ids
from compressor.model.stream import BlockStream
from compressor.planning.allocation import allocate
from compressor.repairing.streaming import Repair
from compressor.scoring.score import score
from compressor.text.texts import read_text
from compressor.text.tokens import tokenize
from compressor.verification.child import verify_here
from compressor.verification.verify import verify
from compressor.writing.cuts import write
from compressor.writing.record import write_record


@pytest.fixture
def written(llama, tmp_path):
    checkpoint = Checkpoint(llama)
    plan = allocate(score(checkpoint, "random"), checkpoint, Target("keep", 0.7))
    chosen = write(checkpoint, plan, tmp_path / "out")
    write_record(tmp_path / "out", make_record(checkpoint, plan, "uniform", chosen))
    return tmp_path / "out"


@pytest.fixture
def short(make_checkpoint, tmp_path):
    """An OPT of 40 positions."""
    sizes = {"word_embed_proj_dim": 32, "intermediate_size": 128, "max_position_embeddings": 40}
    return make_checkpoint(tmp_path / "model", "opt", tie_word_embeddings=True, **sizes)


def test_prompts_end_where_the_positions_do(short, tmp_path):
    """Learned positions have no row for the tokens behind them."""
    checkpoint = Checkpoint(short)
    assert min(ids.shape[1] for ids in prompt_ids(checkpoint.tokenizer(), None)) > 40
    plan = allocate(score(checkpoint, "random"), checkpoint, Target("keep", 0.8))
    chosen = write(checkpoint, plan, tmp_path / "out")
    write_record(tmp_path / "out", make_record(checkpoint, plan, "uniform", chosen))
    assert verify_here(tmp_path / "out", short)["logits_difference"] <= 1e-3


@pytest.mark.parametrize(
    "given", [[], ["--quantize", "w4a16", "--quantize-group", 16, "--quantize-clip", "none"]]
)
def test_what_a_job_expects_ends_there_too(given, short, tmp_path):
    command = [short, tmp_path / "out", "--sparsity", 0.1, "--method"]
    command += ["magnitude", *given]
    assert compress(*command) == 0


@pytest.fixture(params=["ridge", "ridge-local"])
def mended(request, llama, text_file, tmp_path):
    """A repaired result, its FFN widths padded."""
    checkpoint = Checkpoint(llama)
    tokens = tokenize(read_text(str(text_file)), checkpoint.tokenizer(), 32)
    plan = allocate(score(checkpoint, "random"), checkpoint, Target("keep", 0.7), protect=[0])
    repair = Repair(BlockStream(checkpoint), plan, tokens, request.param)
    chosen = write(checkpoint, plan, tmp_path / "out", "padded", changes=repair.blocks())
    write_record(tmp_path / "out", make_record(checkpoint, plan, "padded", chosen, repair))
    return tmp_path / "out"


def test_a_repaired_result_passes(mended, llama):
    assert verify_here(mended, llama)["logits_difference"] <= 1e-3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layers.1.self_attn.o_proj.weight", "repaired tensors of block 1 in .* are not those"),
        ("layers.2.mlp.down_proj.weight", "repaired tensors of block 2"),
        ("layers.0.mlp.up_proj.weight", "differ from the masked source"),
        ("layers.1.input_layernorm.weight", "differ from the masked source"),
        ("embed_tokens.weight", "differ from the masked source"),
    ],
)
def test_one_changed_column_of_a_repaired_result_is_noticed(mended, llama, name, message):
    edit_tensors(mended, lambda t: t[f"model.{name}"][..., 3].add_(0.5))
    with pytest.raises(VerificationError, match=message):
        verify_here(mended, llama)


@pytest.mark.fresh_process
def test_a_good_result_passes_in_a_fresh_process(written, llama):
    report = verify(written, llama)
    assert report["logits_difference"] <= 1e-3
    assert report["parameters"] == Checkpoint(written).parameters
    # Most other tests have the same in this process.
    told = []
    code, printed, _ = in_this_process(
        [MODULE, str(written), str(llama)], lambda *given: told.append(given)
    )
    assert (code, json.loads(printed)) == (0, report)
    assert told[-1][0] == told[-1][1] > 0


def test_what_breaks_off_is_said(written, monkeypatch):
    monkeypatch.setattr("compressor.verification.child.load", lambda folder: 1 / 0)
    with pytest.raises(VerificationError, match=r"(?s)broke off:.*ZeroDivisionError"):
        verify(written)


def test_without_a_source_it_must_load(written):
    assert verify(written)["loads"]


def test_bad_folders_are_bad_input(written, llama, tmp_path):
    with pytest.raises(InputError, match="no checkpoint in"):
        verify(tmp_path / "nowhere")
    (written / "compression.json").unlink()
    with pytest.raises(InputError, match=r"no compression\.json"):
        verify(written, llama)


def test_one_changed_row_is_noticed(written, llama):
    edit_tensors(written, lambda t: t["model.layers.1.mlp.up_proj.weight"][3].add_(0.5))
    with pytest.raises(VerificationError, match="differ from the masked source"):
        verify_here(written, llama)


def test_a_missing_tensor_is_noticed(written):
    edit_tensors(written, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(VerificationError, match="missing_keys"):
        verify_here(written)


def test_a_wrong_width_is_noticed_before_anything_loads(written, llama):
    config = json.loads((written / "config.json").read_text())
    config["intermediate_size"] += 4
    (written / "config.json").write_text(json.dumps(config))
    with pytest.raises(VerificationError, match=r"has the shape \[.*but the config implies"):
        verify(written, llama)


def test_values_that_are_not_finite_are_noticed(written):
    edit_tensors(written, lambda t: t["model.norm.weight"].fill_(torch.nan))
    with pytest.raises(VerificationError, match="not finite"):
        verify_here(written)


def test_another_tokenizer_is_noticed(written, llama):
    path = written / "tokenizer.json"
    path.write_text(path.read_text().replace('"a": 69', '"a": 70').replace('"b": 70', '"b": 69'))
    with pytest.raises(VerificationError, match="tokenizer"):
        verify_here(written, llama)


def test_a_config_that_names_another_dtype_than_the_files(llama, tmp_path):
    """Old float32 checkpoints often say float16: the source is read as it is stored."""
    source = shutil.copytree(llama, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config["dtype"] = config["torch_dtype"] = "bfloat16"
    (source / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(source)
    plan = allocate(score(checkpoint, "random"), checkpoint, Target("keep", 0.7))
    chosen = write(checkpoint, plan, tmp_path / "out")
    write_record(tmp_path / "out", make_record(checkpoint, plan, "uniform", chosen))
    assert verify_here(tmp_path / "out", source)["logits_difference"] < 1e-4
