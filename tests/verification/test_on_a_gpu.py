"""Where a job runs on a GPU its proof does, too; on a fake one in this process."""

import pytest
import torch
from fake_gpu import installing
from fake_gpu.ledger import LEDGER
from jobs import compress, said

from compressor.errors import MachineError
from compressor.job import proving
from compressor.verification import child, verify

DEVICE = "cuda:1"
MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. If reserved, set a variable."
OPTIONS = ("--keep-blocks", 0.7, "--samples", 4, "--length", 32, "--evaluation", "none", "--device")


@pytest.fixture
def told(monkeypatch, capsys):
    """The commands that fresh processes were started with; what they do is done here."""
    commands = []

    def here(command, progress):
        commands.append(command)
        capsys.readouterr()
        child.main(command[command.index("compressor.verification.child") + 1 :])
        return 0, capsys.readouterr().out, ""

    monkeypatch.setattr(verify, "listened", here)
    return commands


@pytest.mark.parametrize(("device", "more"), [("cpu", []), ("cuda:1", ["--device", "cuda:1"])])
def test_a_command_names_a_gpu_alone(llama, told, monkeypatch, device, more):
    installing.install(monkeypatch)
    verify.verify(llama, device=device)
    assert told[0][told[0].index(str(llama)) + 1 :] == more


@pytest.mark.parametrize(
    "more", ["--repair ridge --layout padded", "--repair none --quantize w4a16 --quantize-group 16"]
)
def test_what_is_compared_is_computed_there(llama, text_file, tmp_path, monkeypatch, more):
    """A mended result beside its masked source, and a packed one: the logits of the CPU."""
    out, found, logits = tmp_path / "out", [], child.logits

    def watched(model, ids, *rest):
        before = LEDGER.total("kernels")
        found.append(logits(model, ids, *rest).cpu())
        kernels.append((str(ids.device), LEDGER.total("kernels") > before + 10))
        precisions.add(torch.get_float32_matmul_precision())
        return found[-1]

    monkeypatch.setattr(child, "logits", watched)
    given = [*OPTIONS, "cpu", *more.split(), "--no-verify", "--calibration", text_file]
    assert compress(llama, out, *given) == 0
    against = {} if "quantize" in more else {"source": llama}
    kernels, precisions = [], set()
    child.verify_here(out, **against)
    installing.install(monkeypatch)
    expected, found = found, []
    kernels.clear()
    report = child.verify_on(DEVICE, out, against, lambda done, total: None)
    assert "note" not in report and report.get("logits_difference", 0) <= 1e-5
    assert {*kernels} == {(DEVICE, True)} and precisions == {"highest"}
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def refusing(name, error, monkeypatch):
    """Have a function of the child fail wherever a GPU is named or used."""
    former = getattr(child, name)

    def refuse(*given):
        if any(str(getattr(each, "device", each)) == DEVICE for each in given):
            raise error
        return former(*given)

    monkeypatch.setattr(child, name, refuse)


@pytest.mark.parametrize(
    ("name", "error", "why"),
    [
        (
            "logits",
            torch.OutOfMemoryError(MESSAGE),
            f"{DEVICE} does not hold the model: CUDA out of memory. Tried to allocate 2.00 GiB.",
        ),
        (
            "logits",
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            f"{DEVICE} does not hold the model: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling "
            "`cublasCreate`.",
        ),
        (
            "check_device",
            MachineError(f"The device {DEVICE!r} cannot be used: CUDA error: it is busy\nadvice"),
            f"The device {DEVICE!r} cannot be used: CUDA error: it is busy.",
        ),
    ],
)
def test_what_a_gpu_cannot_do_the_cpu_does(llama, monkeypatch, name, error, why):
    installing.install(monkeypatch)
    refusing(name, error, monkeypatch)
    report = child.verify_on(DEVICE, llama, {}, lambda done, total: None)
    assert report.pop("note") == f"It ran on the CPU. {why}"
    assert report == child.verify_here(llama)


def test_what_the_result_does_wrong_is_not_tried_again(llama, monkeypatch):
    installing.install(monkeypatch)
    refusing("logits", RuntimeError("mat1 and mat2 shapes cannot be multiplied"), monkeypatch)
    with pytest.raises(RuntimeError, match="shapes"):
        child.verify_on(DEVICE, llama, {}, lambda done, total: None)


def test_a_job_gives_the_gpu_back_first_and_says_what_the_cpu_did(
    llama, text_file, tmp_path, monkeypatch, capsys
):
    installing.install(monkeypatch)
    done = []
    report = {"logits_difference": 0.0, "note": "It ran on the CPU. The GPU is full."}

    def proof(folder, *references, device, **options):
        done.append(device)
        return report

    monkeypatch.setattr(proving, "verify", proof)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("freed"))
    given = [*OPTIONS, DEVICE, "--repair", "none", "--calibration", text_file]
    assert compress(llama, tmp_path / "out", *given) == 0
    assert done[-2:] == ["freed", DEVICE]
    assert "verify It ran on the CPU. The GPU is full." in said(capsys)
