"""`make real` on a tiny model: every run is measured once, goes on where it was stopped, and is shown.

Its scripts run in this process, where all is imported already; `ran` is the one door to other processes.
"""

import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import real
import real_accuracy
import real_forward
import real_judge
import real_report
import real_run
import stock
import typer
from real_grid import GRID, Run

import compressor
from compressor.cli import compress, running, sparsify, stages
from compressor.job.asked import check_asked

SCRIPTS = {each.__name__: each for each in (real_judge, real_forward)}
SMALL = {"samples": 4, "tokens": 32, "windows": [2, 4], "part": 2, "length": 32, "questions": 3}
RUNS = (
    Run("default", "--repair ridge", shares=(0.8, 0.6)),
    Run("zeros", "--method magnitude", shares=(0.5,), job="sparsify"),
)


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """The names of what is started, in the order that it is; it runs here, and is not verified."""
    names = []
    commands = {"compress": compress.app, "compressor": stages.stages}

    def ran(command: list) -> str:
        first, *arguments = map(str, command)
        out = StringIO()
        with redirect_stdout(out):
            if first == sys.executable:
                names.append(Path(arguments[0]).stem)
                app = typer.Typer()
                app.command()(SCRIPTS[names[-1]].main)
                app(arguments[1:], standalone_mode=False)
            else:
                names.append(Path(first).name)
                app = commands[names[-1]]
                quick = [] if arguments[0] == "generate" else ["--no-verify"]
                if running.run(app, [*arguments, *quick]):
                    raise real_run.Failed("the command failed")
        return out.getvalue()

    monkeypatch.setattr(real_run, "ran", ran)
    return names


@pytest.fixture
def bench(monkeypatch, models, data, tmp_path):
    """Runs `make real` with a grid of two small runs."""
    monkeypatch.setattr(real, "GRID", RUNS)
    places = {
        "models": models,
        "data": data,
        "results": tmp_path / "rows",
        "work": tmp_path / "work",
    }

    def run(**options) -> list[dict]:
        real.main(**places | SMALL | {"zeroshot": False} | options)
        return [json.loads(line) for line in (tmp_path / "rows/rows.jsonl").open()]

    return run


def test_measures_every_run_once(bench, started, tmp_path, capsys):
    rows = bench()
    assert started == [
        *("real_judge", "real_forward", "compress", "real_judge", "real_judge"),
        *("real_forward", "compressor", "real_judge"),
    ]
    assert [(row["run"], row["asked"]) for row in rows] == [
        *(("dense", 1.0), ("default", 0.6), ("default", 0.8), ("zeros", 0.5)),
    ]
    dense, *others = rows
    assert dense["times_dense"] == dict.fromkeys(("2", "4", "c4", "tinystories"), 1.0)
    for row in others:
        assert row["share"] == pytest.approx(row["asked"], abs=0.1)
        assert row["kl"] > 0 < row["top1"] < 1
        assert row["forwards"] == row["processor"] / row["forward"] > 0 < row["peak_rss_bytes"]
        assert row["times_dense"]["4"] == row["perplexity"]["4"] / dense["perplexity"]["4"]
    assert others[0]["parameters"] < others[1]["parameters"] < others[2]["parameters"]
    assert (tmp_path / f"rows/{GRID[0].model}.png").stat().st_size > 10_000
    assert [*(tmp_path / "work").iterdir()] == []  # what is judged is not kept
    printed = capsys.readouterr().out
    started.clear()
    assert bench() == rows
    assert started == []
    assert capsys.readouterr().out == "".join(
        line for line in printed.splitlines(True) if "measured" not in line
    )


@pytest.mark.slow
def test_calibrates_on_what_python_and_the_model_say(bench, started, monkeypatch, tmp_path):
    texts = ("stdlib-prose", "own")
    runs = tuple(Run(f"text {text}", "--method taylor --repair none", text=text) for text in texts)
    monkeypatch.setattr(real, "GRID", runs)
    rows = bench()[1:]
    assert [row["text"] for row in rows] == [*texts]
    assert started == [
        *("real_judge", "real_forward", "compress", "real_judge"),
        *("compressor", "real_forward", "compress", "real_judge"),
    ]
    assert rows[0]["perplexity"] != rows[1]["perplexity"]
    assert (tmp_path / f"work/{GRID[0].model}.jsonl").stat().st_size > 100


def test_goes_on_where_it_was_stopped(bench, started, monkeypatch):
    """Between the judging of a job's two results: the second is judged, and nothing is cut again."""
    whole, calls = real.judged, []

    def stopping(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*given)

    monkeypatch.setattr(real, "judged", stopping)
    with pytest.raises(KeyboardInterrupt):
        bench()
    started.clear()
    rows = bench()
    assert started == ["real_judge", "real_forward", "compressor", "real_judge"]
    assert len(rows) == 4


def test_a_run_that_fails_is_told_and_the_others_stand(bench, started, monkeypatch, tmp_path):
    monkeypatch.setattr(real, "GRID", (Run("odd", "--method none-such"), RUNS[1]))
    with pytest.raises(SystemExit, match=r"1 of the runs gave nothing\. .*, odd, draw 0: "):
        bench()
    rows = [json.loads(line)["run"] for line in (tmp_path / "rows/rows.jsonl").open()]
    assert rows == ["dense", "zeros"]


def test_a_command_that_fails_gives_its_last_line():
    with pytest.raises(real_run.Failed, match=r"^There is no cheese\.$"):
        real_run.ran([sys.executable, "-c", "raise SystemExit('There is no cheese.')"])


def test_a_peer_is_judged_as_it_is(bench, started, model, data, tmp_path):
    peer = tmp_path / "peer"
    compressor.compress(
        model, peer, keep_blocks=0.7, repair="none", evaluation="none", verify=False
    )
    (row,) = (row for row in bench(peer=peer) if row["run"] == "peer peer")
    kept = json.loads((peer / "compression.json").read_text())["plan"]["about"]
    assert row["share"] == pytest.approx(kept["keep_blocks_reached"], abs=0.01)


def test_what_is_missing_is_said_at_once(bench, data, tmp_path, without):
    with pytest.raises(SystemExit, match=r"lacks wikitext2/wiki.train.slice.raw, .*DATA=FOLDER"):
        bench(data=tmp_path)
    with pytest.raises(SystemExit, match=r"lacks zeroshot/arc-easy_test.jsonl, zeroshot/open"):
        bench(zeroshot=True)
    with pytest.raises(SystemExit, match=r"There is no model .*real_models.py .* gets it"):
        bench(models=tmp_path)
    with pytest.raises(SystemExit, match=r"There is no run 'odd'; those known are default, zeros"):
        bench(only=["odd"])
    with pytest.raises(SystemExit, match=r"No such run is of the model 'odd'"):
        bench(model="odd")
    (tmp_path / "zeroshot").mkdir()
    for name in (stock.CALIBRATION, *stock.JUDGED.values()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(data / name)
    for file, _ in real_accuracy.TASKS.values():
        (tmp_path / "zeroshot" / file).touch()
    without("lm_eval")
    with pytest.raises(SystemExit, match=r"needs lm-eval.*pip install -e '.\[real\]'"):
        bench(data=tmp_path, zeroshot=True)


def test_the_grid_is_of_commands_that_there_are(model, text_file, tmp_path, monkeypatch):
    asked = []
    for module in (compress, sparsify):
        monkeypatch.setattr(module, "run_and_show", lambda config, _: asked.append(config))
    for run in GRID:
        name, *words = run.command(str(model), str(tmp_path / "out"), str(text_file), 512)
        assert (
            running.run({"compress": compress.app, "compressor": stages.stages}[name], words) == 0
        )
        check_asked(asked[-1])
    assert len(asked) == len(GRID) == len({*GRID})
    assert sum(len(run.shares) for run in GRID) <= 40


def test_the_front_has_no_point_that_another_beats():
    points = [(0.1, 1.1), (0.2, 1.3), (0.2, 1.2), (0.15, 1.25), (0.299, 1.2), (0.3, 1.4)]
    assert real_report.front(points) == [(0.1, 1.1), (0.299, 1.2)]


def test_peers_are_compared_at_the_same_number_of_windows():
    (row,) = (
        row
        for row in real_report.peers_of(GRID[0].model, (8, 32))
        if row["run"].startswith("MoDeGPT")
    )
    assert (row["perplexity"], round(1 - row["share"], 4)) == ({"8": 44.849}, 0.2002)
    assert real_report.peers_of("none-such", (4,)) == []
