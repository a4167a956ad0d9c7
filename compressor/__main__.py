"""`python -m compressor STAGE`."""

import sys

from compressor.cli import run
from compressor.stages import stages

sys.exit(run(stages, sys.argv[1:]))
