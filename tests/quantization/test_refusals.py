"""What `--quantize` cannot do, and what of its folders is not read."""

import json
import re
import shutil

import pytest
from edits import edit_config
from jobs import compress, said

from compressor.config import quantization as options
from compressor.config.packing import FP8, NVFP4A16, W4A16, Packing
from compressor.errors import InputError
from compressor.model.checkpoint import Checkpoint
from compressor.quantization.reading import open_model
from compressor.quantization.stream import check_columns


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quantize", "w8a8"], "--quantize must be none, w4a16, fp8 or nvfp4a16, not 'w8a8'"),
        (["--quantize", "w4a16", "--quantize-group", 1], "quantize_group must be at least 2"),
        (["--quantize", "fp8:64"], "quantize_group is of --quantize w4a16 alone.*--quantize fp8"),
        (["--quantize", "nvfp4a16", "--quantize-clip", "none"], "quantize_clip is of --quantize w4a16"),
        (["--quantize", "w4a16"], "q_proj.weight has 32 input channels, .* groups of 128"),
        (
            ["--quantize", "w4a16", "--quantize-group", 32],
            "down_proj.weight has 48 input channels, .* 32 .*Groups of 16.*multiples of 32, at most 32 "
            "of 48",
        ),
        (["--quantize", "w4a16", "--keep", 0.8], "No cut of this model .* whole groups of 128"),
        (
            ["--quantize", "w4a16", "--quantize-group", 16, "--target-bytes", "80KB"],
            "A --target in bytes counts unquantised ones",
        ),
        (
            ["--quantize", "w4a16", "--quantize-group", 16, "--keep", 0.8, "--layout", "padded"],
            "--layout padded is not for the kernels",
        ),
        (
            ["--quantize", "w4a16", "--quantize-group", 16, "--recover", "lora"],
            "--recover is for cuts, and nothing is cut",
        ),
        *(
            (["--quantize", "w4a16", "--quantize-group", 16, *given], f"{given[-2]} is for cuts")
            for given in (
                ["--repair", "ridge"],
                ["--layout", "padded"],
                ["--select", "obs"],
                ["--allocate", "exact"],
                ["--method", "hywia"],
                ["--keep", 1, "--align", 8],
            )
        ),
    ],
)  # fmt: skip
def test_refusals(llama, tmp_path, capsys, arguments, message):
    assert compress(llama, tmp_path / "q", *arguments) == 2
    shown = said(capsys)
    assert re.search(message, shown), shown
    assert not list(tmp_path.iterdir())


def test_without_the_package(llama, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    assert compress(llama, tmp_path / "q", "--quantize", "w4a16") == 2
    assert "pip install 'compressor-llm[quantize]'" in said(capsys)


def test_other_quantised_folders_are_not_cut(quantised, tmp_path, capsys):
    shutil.copytree(quantised, tmp_path / "q")
    edit_config(tmp_path / "q", quantization_config={"quant_method": "gptq", "bits": 4})
    assert compress(tmp_path / "q", tmp_path / "out", "--keep", 0.8) == 2
    assert "model.dequantize().save_pretrained(COPY)" in said(capsys)


@pytest.mark.parametrize(
    "change", [{"quant_method": "gptq"}, {"format": "int-quantized"}, {"config_groups": []}]
)
def test_other_formats_are_not_read(quantised, tmp_path, change):
    shutil.copytree(quantised, tmp_path / "q")
    file = tmp_path / "q" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= change
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match="is quantised by"):
        open_model(tmp_path / "q")


def test_projections_and_their_columns(llama):
    checkpoint = Checkpoint(llama)
    names = [n.split(".")[1] for n in checkpoint.family.projections()]
    assert sorted(names) == sorted(f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down"))
    check_columns(checkpoint, Packing(W4A16, 16))
    with pytest.raises(InputError, match="down_proj"):
        check_columns(checkpoint, Packing(W4A16, 32))


@pytest.mark.parametrize("scheme", [FP8, NVFP4A16])
def test_columns_of_floats(make_checkpoint, tmp_path, scheme):
    source = Checkpoint(make_checkpoint(tmp_path / "m", intermediate_size=40))
    message = (
        f"down_proj.weight has 40 input channels.*groups of 16. {scheme} takes no others; or cut"
    )
    with pytest.raises(InputError, match=message):
        check_columns(source, Packing.of(scheme, 128))
