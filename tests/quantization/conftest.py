"""A quantised folder."""

import pytest
from jobs import compress


@pytest.fixture(scope="session")
def quantised(llama, tmp_path_factory):
    """The source without a cut, quantised."""
    dest = tmp_path_factory.mktemp("quantised") / "q"
    options = ["--quantize", "w4a16", "--quantize-group", 16, "--quantize-clip", "none"]
    assert compress(llama, dest, *options, "--no-verify") == 0
    return dest
