"""Weights that are trained themselves."""

import pytest
import torch
from jobs import compress, left_over, stage
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compressor.config.recovery import RecoveryConfig
from compressor.config.target import Target
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import SINGLE
from compressor.planning.allocation import allocate
from compressor.recovery.data import RecoveryData
from compressor.recovery.full import load_full, write_full
from compressor.recovery.stage import save_expected
from compressor.recovery.training import Training, order, train
from compressor.scoring.score import score
from compressor.verification.child import verify_here
from compressor.writing.cuts import write

CPU = torch.device("cpu")


def trained(folder, examples, state, **options):
    model = load_full(folder, CPU)
    recovery = RecoveryConfig("full", **{"batch": 8, "learning_rate": 1e-2} | options)
    data = RecoveryData(examples[2:], examples[:2])
    return train(model, Training(recovery, data), state), model


def test_one_step_is_that_of_a_plain_loop(any_family, examples, tmp_path):
    """Head and embedding too, tied or not, against the model's own loss of all sequences at once."""
    settings = {"steps": 1, "accumulate": 4, "warmup": 0.0, "learning_rate": 0.1}
    history, found = trained(any_family, examples, tmp_path / "state", **settings)
    model = AutoModelForCausalLM.from_pretrained(any_family, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    chosen = [examples[2:][i] for i in order(0, 8, 10, seed=0)]
    ids = torch.nn.utils.rnn.pad_sequence([e.ids for e in chosen], batch_first=True)
    labels = [e.labels for e in chosen]
    labels = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    optimizer.step()
    assert history.losses == [pytest.approx(loss.item(), rel=1e-5)]
    write_full(found, any_family, tmp_path / "out")
    before, after = (Checkpoint(f) for f in (any_family, tmp_path / "out"))
    before, after = before.read(before.tensors), after.read(after.tensors)
    counted = 0
    for name, parameter in model.named_parameters():
        if name in before and before[name].shape == parameter.grad.shape:
            # Adam's first step is the sign of the gradient, where that is more than rounding.
            clear = parameter.grad.abs() > 1e-4
            step = (after[name] - before[name])[clear]
            torch.testing.assert_close(step, -0.1 * parameter.grad[clear].sign(), rtol=0, atol=2e-3)
            counted += int(clear.sum())
    assert counted > 0.2 * sum(t.numel() for t in before.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_what_is_in_memory(make_checkpoint, examples, tmp_path, dtype):
    model = make_checkpoint(tmp_path / "model", dtype=dtype)
    _, found = trained(model, examples, tmp_path / "state", steps=3)
    write_full(found, model, tmp_path / "out")
    save_expected(found, model, tmp_path / "expected.safetensors")
    report = verify_here(tmp_path / "out", expected=tmp_path / "expected.safetensors")
    assert report["logits_difference"] < 1e-5
    before, after = (load_file(folder / SINGLE) for folder in (model, tmp_path / "out"))
    assert {name: t.dtype for name, t in before.items()} == {n: t.dtype for n, t in after.items()}
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_padded_units_stay_absent(llama, examples, tmp_path):
    checkpoint = Checkpoint(llama)
    plan = allocate(score(checkpoint, "random"), checkpoint, Target("keep", 0.7), protect=[0])
    write(checkpoint, plan, tmp_path / "padded", layout="padded")
    options = {"steps": 4, "weight_decay": 0.1}
    _, found = trained(tmp_path / "padded", examples, tmp_path / "state", **options)
    write_full(found, tmp_path / "padded", tmp_path / "out")
    before, after = (load_file(tmp_path / d / SINGLE) for d in ("padded", "out"))
    zeros = {name: t == 0 for name, t in before.items() if (t == 0).any()}
    assert len(zeros) >= 2 * len(checkpoint.family.projections())
    for name, absent in zeros.items():
        assert torch.equal(absent, after[name] == 0), name


def test_an_interrupted_stage_goes_on(llama, alone, tmp_path, dies_after_a_save):
    """Bit by bit."""
    options = [*alone, "--recover", "full"]
    assert stage("recover", llama, tmp_path / "dest", *options) == 130
    assert stage("recover", llama, tmp_path / "dest", *options, "--resume") == 0
    assert stage("recover", llama, tmp_path / "whole", *options) == 0
    one, two = (load_file(tmp_path / name / SINGLE) for name in ("dest", "whole"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_it_takes_what_its_moments_take(llama, options, tmp_path, capsys):
    """16 bytes a weight, before the work."""
    full = [*options, "--recover", "full", "--max-memory", "300KB"]
    assert compress(llama, tmp_path / "out", "--keep", 0.7, *full) == 4
    assert "with gradients and AdamW's moments" in capsys.readouterr().err
    assert left_over(tmp_path / "out") == []


def test_it_is_taught_by_the_uncut_model_alone(llama, alone, tmp_path, capsys):
    assert stage("recover", llama, tmp_path / "out", *alone, "--recover", "full-distill") == 2
    assert "--recover full-distill learns from the uncut model" in capsys.readouterr().err


def test_a_narrower_rate_is_usual():
    """Of weights."""
    rates = [RecoveryConfig(method).of_width(4096).learning_rate for method in ("lora", "full")]
    assert rates == pytest.approx([1e-4, 3e-5])
    with pytest.raises(InputError, match="lora_dropout is of adapters"):
        RecoveryConfig("full", dropout=0.1).check()
