"""What `import compressor` offers, without importing torch for it."""

import subprocess
import sys

import pytest

import compressor


def test_the_names():
    assert {*compressor.__all__} <= {*dir(compressor)}
    for name in compressor.__all__:
        assert getattr(compressor, name).__doc__


def test_what_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'shrink'"):
        compressor.shrink  # noqa: B018


@pytest.mark.parametrize("command", ["compress", "compressor"])
def test_help_needs_no_torch(command):
    module = {"compress": "compressor.cli.compress", "compressor": "compressor.cli.stages"}[command]
    code = (
        "import sys; sys.argv = ['x', '--help']\n"
        f"from {module} import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'transformers'} & {*sys.modules}\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_needs_no_torch():
    code = "import sys, compressor; assert not {'torch', 'transformers'} & {*sys.modules}"
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0
