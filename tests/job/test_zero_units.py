"""Units that are zero already: their Gram matrices are singular, and to cut them changes no number."""

import json
import shutil

import pytest
import torch
from edits import edit_tensors
from jobs import compress
from transformers import AutoModelForCausalLM

from compressor.model.checkpoint import Checkpoint

ZEROS = 16  # of the 48 FFN channels of a block, and one of its four KV groups


@pytest.fixture
def zeroed(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "zeroed")
    rows = {"q_proj": 8, "k_proj": 4, "v_proj": 4, "gate_proj": ZEROS, "up_proj": ZEROS}
    columns = {"o_proj": 8, "down_proj": ZEROS}

    def change(tensors):
        for name, tensor in tensors.items():
            for part, count in rows.items():
                tensor[: count if part in name else 0] = 0
            for part, count in columns.items():
                if part in name:
                    tensor[:, :count] = 0

    edit_tensors(folder, change)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "llm-bip", "--repair", "refine"],
        ["--method", "llm-bip", "--repair", "ridge", "--select", "obs"],
        ["--method", "hywia", "--repair", "ridge-local"],
    ],
    ids=lambda options: options[1] + " " + options[3],
)
def test_they_go_first_and_no_logit_changes(zeroed, text_file, tmp_path, capsys, options):
    job = [zeroed, tmp_path / "out", "--keep-blocks", 0.7, "--align", 4, "--length", 32, "--json"]
    texts = ["--calibration", text_file, "--samples", 8, "--evaluation", text_file]
    assert compress(*job, *texts, "--no-verify", *options) == 0
    result = json.loads(capsys.readouterr().out)
    written = Checkpoint(tmp_path / "out")
    assert written.units == {"attention": 3, "ffn": 48 - ZEROS}
    assert result["perplexity_after"] == pytest.approx(result["perplexity_before"], rel=1e-5)
    ids = torch.arange(3, 33)[None]
    with torch.no_grad():
        before, after = (
            AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
            for folder in (zeroed, tmp_path / "out")
        )
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
