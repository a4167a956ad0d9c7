"""`bench/drafted.py` on small models: a model that drafts for itself is always right."""

import json

import drafted
from serving.folders import cut
from serving.models import source_of


def test_drafts_are_counted(make_checkpoint, tmp_path, capsys):
    source = source_of("llama", tmp_path / "large", make_checkpoint)
    cut(source, "uniform", tmp_path / "small")
    speeds = {}
    for draft in (source.path, tmp_path / "small"):
        drafted.main(source.path, draft, tokens=12, results=tmp_path)
        told = json.loads((tmp_path / f"drafted-{draft.name}.json").read_text())
        speeds[draft.name] = [row["tokens_a_step"] for row in told["rows"]]
        assert all(row["tokens"] <= 12 and row["alone"] > 0 for row in told["rows"])
    assert min(speeds["large"]) > 1.5
    assert all(1 <= a <= b for a, b in zip(speeds["small"], speeds["large"], strict=True))
    assert "tokens a step" in " ".join(capsys.readouterr().out.split())
