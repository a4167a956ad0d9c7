"""Everything here needs compressed-tensors."""

import pytest

pytest.importorskip("compressed_tensors")
