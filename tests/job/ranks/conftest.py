"""Jobs of several ranks, started as torchrun does."""

import json

import pytest
from ranked import started  # noqa: F401  # a fixture


@pytest.fixture(scope="session")
def seven(tmp_path_factory) -> list:
    """Options of a job on seven documents of different lengths, without verification."""
    file = tmp_path_factory.mktemp("seven") / "documents.jsonl"
    words = ["quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "12 boxes", "3 jugs"]
    texts = (" ".join(words[i * k % 9] for k in range(1, 9 + i)) for i in range(16))
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return ["--calibration", file, "--length", 48, "--samples", 7, "--no-verify"]
