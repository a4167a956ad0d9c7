"""The command line: the whole job, and the stages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import compress, said, same_bytes, stage

from compressor.config.repair import KINDS
from compressor.model.checkpoint import Checkpoint
from compressor.model.tensors import SINGLE
from compressor.planning.costs import CLOSE
from compressor.scoring.methods import CHANNELS, METHODS

JSON_KEYS = {
    "source", "dest", "method", "mode", "allocate", "layout", "container", "keep_asked",
    "keep_reached", "keep_blocks_reached", "parameters_before", "parameters_after", "bytes_before",
    "bytes_after", "perplexity_before", "perplexity_after", "seconds", "peak_rss_bytes",
    "peak_gpu_bytes", "seed", "warnings", "align", "align_wider", "outside_blocks",
}  # fmt: skip


@pytest.mark.fresh_process
def test_the_whole_job(llama, text_file, tmp_path, capsys):
    dest = tmp_path / "small"
    code = compress(
        llama, dest, "--keep", 0.7, "--calibration", text_file, "--evaluation", text_file,
        "--length", 32, "--json",
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found.keys() >= JSON_KEYS
    assert found["keep_reached"] == pytest.approx(0.7, abs=CLOSE)
    assert found["parameters_after"] == Checkpoint(dest).parameters
    assert found["perplexity_before"] > 1 and found["perplexity_after"] > 1
    assert found["peak_rss_bytes"] > 10**8
    assert found["verified"].startswith("logits within")
    record = json.loads((dest / "compression.json").read_text())
    assert record["source"]["fingerprint"] == Checkpoint(llama).fingerprint
    assert record["evaluation"]["tokens"] > 0
    assert record["plan"]["about"]["scores"]["calibration"]["sha256"]
    assert (
        found["repair"] == record["repair"]["kind"] == "refine" and found["seconds"]["repair"] > 0
    )
    card = (dest / "README.md").read_text()
    assert "AutoModelForCausalLM" in card and "widths by `uniform`" in card
    assert f"refitted (`--repair refine`) on {text_file.name}: " in card
    assert "every block was trained toward the source's, once over that text" in card
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


def test_fast_reads_less_and_does_not_train(llama, tmp_path, capsys):
    texts = "--calibration", "stdlib", "--evaluation", "none", "--length", 32
    assert compress(llama, tmp_path / "out", "--keep", 0.7, *texts, "--fast", "--no-verify") == 0
    record = json.loads((tmp_path / "out" / "compression.json").read_text())["repair"]
    assert record["kind"] == "ridge"
    assert 0.9 * 16_384 < record["calibration"]["tokens"] <= 16_384
    assert "16,384 tokens in all" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "asked", "reached"),
    [
        (["--keep", 0.7], "keep 0.7", "stays"),
        (["--keep-blocks", 0.7], "blocks 0.7", "stays of the blocks"),
        (["--target-params", 30_000], "30,000", "parameters"),
        (["--target-bytes", 120_000], "120 KB", "size"),
        (["--keep", 0.8, "--budget", "flops"], "keep 0.8 of flops", "share of flops"),
        (
            ["--keep-blocks", 0.8, "--budget", "flops"],
            "blocks 0.8 of flops",
            "share of flops, blocks only",
        ),
        (["--quantize", "w4a16", "--quantize-group", 16, "--quantize-clip", "none"], "", None),
    ],
)
def test_the_table_says_what_was_asked_and_what_stays(
    llama, quick, tmp_path, capsys, target, asked, reached
):
    given = ["--method", "random", "--repair", "none"] if asked else []
    assert compress(llama, tmp_path / "small", *target, *quick, *given) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    (heads,) = (line for line in lines if line.startswith(" result "))
    (row,) = (line for line in lines if line.startswith(" small "))
    # Columns are right-justified, so a head ends where its cells do.
    ends = {name: heads.index(name) + len(name) for name in heads.split()}
    begins = dict(zip([*ends][1:], ends.values(), strict=False))
    shown = {name: row[begins[name] : end].strip() for name, end in ends.items() if name in begins}
    assert shown["asked"] == asked
    facts = (line.split("  ", 1) for line in lines if "  " in line.strip())
    shown |= {name: said.strip() for name, said in facts if not name.startswith(" ")}
    assert {"type", "verified", "stays of the blocks"} <= shown.keys()
    assert all(len(line) <= 80 for line in lines[: lines.index(row) + 1])
    assert ("parameters stay (" in printed.err) == bool(asked)
    if reached:
        said, wanted = float(shown[reached].split()[0].replace(",", "")), target[1]
        if "--target" in target[0]:
            record = json.loads((tmp_path / "small/compression.json").read_text())
            exact = record["bytes_after" if reached == "size" else "parameters_after"]
            assert 0.96 * wanted < exact <= wanted  # headers count
            assert said == (round(exact / 1000) if reached == "size" else exact)
        else:
            assert said == pytest.approx(wanted, abs=0.0125 / 2)  # channels in all blocks


def test_same_run_same_bytes(llama, quick, tmp_path):
    for name in "ab":
        assert compress(llama, tmp_path / name, "--keep", 0.7, *quick) == 0
    for file in (tmp_path / "a").iterdir():
        assert same_bytes(file, tmp_path / "b" / file.name)


def test_several_ratios_from_one_pass(llama, quick, tmp_path, capsys):
    dest = tmp_path / "out"
    assert compress(llama, dest, "--keep", 0.9, 0.8, 0.7, *quick, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(r["dest"]).name for r in found] == ["keep-0.9", "keep-0.8", "keep-0.7"]
    sizes = [Checkpoint(dest / f"keep-{k}").parameters for k in (0.9, 0.8, 0.7)]
    assert sizes == sorted(sizes, reverse=True)
    assert compress(llama, tmp_path / "one", "--keep", 0.8, *quick) == 0
    assert same_bytes(tmp_path / "one" / SINGLE, dest / "keep-0.8" / SINGLE)


@pytest.mark.parametrize("method", [m.name for m in METHODS.values() if CHANNELS in m.units])
def test_every_method_and_mode(llama, quick, tmp_path, method):
    for mode in (m.replace(":a", ":0.5") for m in METHODS[method].modes):
        dest = tmp_path / mode
        options = ["--method", method, "--mode", mode, "--keep-blocks", 0.6]
        assert compress(llama, dest, *options, *quick) == 0
        assert Checkpoint(dest).units["ffn"] < 48


@pytest.mark.parametrize("repair", [k for k in KINDS if k != "bias"])
def test_every_repair(llama, quick, tmp_path, repair):
    options = ["--method", "magnitude", "--keep", 0.7, "--repair", repair]
    assert compress(llama, tmp_path / "out", *options, *quick) == 0
    record = json.loads((tmp_path / "out" / "compression.json").read_text())["repair"]
    assert (record is None) == (repair == "none")
    if record:
        assert record["kind"] == repair and record["calibration"]["sha256"]
        for name, step in (s for block in record["blocks"] for s in block["steps"].items()):
            told = {"losses", "after", "trials", "rate", "share"}
            assert step.keys() == (told if name == "refine" else {"lambda", "before", "after"})


def test_refining_again_and_again(llama, quick, tmp_path):
    assert compress(llama, tmp_path / "out", "--keep", 0.7, "--refine-epochs", 3, *quick) == 0
    record = json.loads((tmp_path / "out" / "compression.json").read_text())["repair"]
    assert record["epochs"] == 3
    steps = [block["steps"]["refine"] for block in record["blocks"]]
    assert {len(step["losses"]) for step in steps if step["rate"]} == {4}
    assert [b for b, step in enumerate(steps) if not step["rate"]] == record["untrained"]


def test_selection_alone_and_in_the_job(llama, quick, tmp_path, text_file, capsys):
    chosen = ["--select", "obs", "--kv-cost", "measured"]
    assert compress(llama, tmp_path / "whole", "--keep", 0.7, *chosen, *quick) == 0
    record = json.loads((tmp_path / "whole" / "compression.json").read_text())["plan"]
    text = ["--calibration", text_file, "--samples", 4, "--length", 32]
    scores, made = tmp_path / "s.safetensors", tmp_path / "p.json"
    assert stage("score", llama, "--out", scores, *text, *chosen) == 0
    assert stage("plan", scores, "--out", made, "--keep", 0.7) == 0
    assert json.loads(made.read_text())["blocks"] == record["blocks"]
    assert record["about"]["scores"]["select"] == "obs"
    assert compress(llama, tmp_path / "other", "--keep", 0.7, "--select", "best", *quick) == 2
    assert "--select is score or obs, not 'best'" in capsys.readouterr().err


def test_repair_by_biases_where_there_are_some(make_checkpoint, quick, tmp_path):
    source = make_checkpoint(tmp_path / "m", attention_bias=True, mlp_bias=True)
    assert compress(source, tmp_path / "out", "--keep", 0.7, "--repair", "bias", *quick) == 0


@pytest.mark.parametrize(
    ("option", "value"), [("--target-params", "0.02M"), ("--target-bytes", "80KB")]
)
def test_absolute_targets(llama, quick, tmp_path, option, value):
    assert compress(llama, tmp_path / "out", option, value, *quick) == 0
    written = Checkpoint(tmp_path / "out")
    reached = written.parameters if "params" in option else written.bytes
    limit = {"0.02M": 20_000, "80KB": 80_000}[value]
    assert 0.85 * limit < reached <= limit


def test_the_stages_alone_give_the_same(llama, quick, tmp_path, text_file, capsys):
    assert compress(llama, tmp_path / "whole", "--keep", 0.7, *quick) == 0
    scores, plan = tmp_path / "s.safetensors", tmp_path / "p.json"

    assert stage("score", llama, "--out", scores, *quick[:-1]) == 0
    assert stage("plan", scores, "--keep", 0.7, "--out", plan) == 0
    assert stage("cut", llama, tmp_path / "cut", "--plan", plan, *quick[:-1]) == 0
    assert same_bytes(tmp_path / "cut" / SINGLE, tmp_path / "whole" / SINGLE)
    capsys.readouterr()
    assert stage("verify", tmp_path / "cut", "--source", llama) == 0
    assert json.loads(capsys.readouterr().out)["loads"]
    assert stage("eval", llama, "--text", text_file, "--length", 32, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {
        *("perplexity", "nll", "expected", "tokens", "documents", "protocol", "warnings")
    }


def test_work_dir_is_the_users(llama, quick, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "precious").touch()
    options = [*quick, "--work-dir", tmp_path / "work"]
    assert compress(llama, tmp_path / "out", "--keep", 0.7, *options) == 0
    assert (
        compress(llama, tmp_path / "out2", "--keep", 0.7, *options, "--calibration", "typo.txt")
        == 2
    )
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["precious"]


def test_pruned_statistics(llama, quick, tmp_path):
    options = ["--keep", 0.7, "--statistics", "pruned", *quick]
    assert compress(llama, tmp_path / "a", *options) == 0
    padded = ["--layout", "padded", "--protect", "0"]
    assert compress(llama, tmp_path / "b", *options, *padded) == 0
    record = json.loads((tmp_path / "b" / "compression.json").read_text())
    assert len(record["plan"]["blocks"][0]["ffn"]) == 48


def test_global_allocation(llama, quick, tmp_path, capsys):
    options = ["--allocate", "global", "--protect", "0", "--align", 2]
    whole = [*options, "--layout", "padded", "--keep", 0.7, "--method", "hywia", *quick[:-1]]
    assert compress(llama, tmp_path / "whole", *whole, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["allocate"] == "global"
    step = 2 * 3 * 32 / found["parameters_before"]  # two channels in one block
    assert found["keep_reached"] == pytest.approx(0.7, abs=step / 2)
    assert found["verified"].startswith("logits within")
    record = json.loads((tmp_path / "whole" / "compression.json").read_text())
    widths = [len(block["ffn"]) for block in record["plan"]["blocks"]]
    assert widths[0] == 48 and widths[1] != widths[2]

    scores, plan, dest = tmp_path / "s.safetensors", tmp_path / "p.json", tmp_path / "cut"
    assert stage("score", llama, "--out", scores, "--method", "hywia", *quick[:-1]) == 0
    assert stage("plan", scores, "--keep", 0.7, "--out", plan, *options) == 0
    assert f"{min(widths)} to 48 FFN channels" in capsys.readouterr().out
    assert json.loads(plan.read_text())["blocks"] == record["plan"]["blocks"]
    assert stage("cut", llama, dest, "--plan", plan) == 2
    assert "or use --layout nas" in said(capsys)
    padded = ["--layout", "padded", "--no-verify", *quick[:-1]]
    assert stage("cut", llama, dest, "--plan", plan, *padded) == 0
    assert same_bytes(dest / SINGLE, tmp_path / "whole" / SINGLE)


def test_memory_limit_sends_activations_to_files(llama, quick, text_file, tmp_path):
    options = ["--keep", 0.7, *quick, "--evaluation", text_file]
    assert compress(llama, tmp_path / "a", *options) == 0
    assert compress(llama, tmp_path / "b", *options, "--max-memory", "1KB") == 0
    for file in (tmp_path / "a").iterdir():
        assert same_bytes(file, tmp_path / "b" / file.name)


def test_both_commands_start():
    for command in (
        [str(Path(sys.executable).with_name("compress")), "--help"],
        [sys.executable, "-m", "compressor", "--help"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert all(stage in done.stdout for stage in ("score", "plan", "cut", "verify", "eval"))


def test_module_runs_from_the_clone():
    """The clone's folders `kernels` and `compressor` shadow nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "compressor", "plan", "--help"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr


def test_grains_reach_the_scores(llama, quick, tmp_path):
    grains = {"coarse": "vector", "fine": "mix", "reduce": "max"}
    flags = [word for name, value in grains.items() for word in (f"--{name}", value)]
    assert (
        compress(llama, tmp_path / "out", "--keep", 0.7, "--method", "hywia", *flags, *quick) == 0
    )
    record = json.loads((tmp_path / "out/compression.json").read_text())
    about = record["plan"]["about"]["scores"]
    assert about["grains"] == grains | {"gradient": "sequences"}


def test_one_sequence_is_weighed_equally_and_said(llama, text_file, tmp_path, capsys):
    code = compress(
        llama, tmp_path / "out", "--keep", 0.7, "--method", "hywia", "--samples", 1, "--no-verify",
        "--calibration", text_file, "--length", 40, "--repair", "none", "--json",
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and found["mode"] == "fixed:0.5"
    assert any("One calibration sequence has no variance" in w for w in found["warnings"])


def test_texts_beyond_the_positions_are_cut_and_said(llama, text_file, tmp_path, capsys):
    code = compress(
        llama, tmp_path / "out", "--keep", 0.7, "--calibration", text_file, "--samples", 2,
        "--no-verify", "--length", 100, "--json",
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert any("64 positions" in w and "--length 100" in w for w in found["warnings"])
