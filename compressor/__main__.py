"""`python -m compressor STAGE`."""

import sys

from compressor.cli import run, stages

sys.exit(run(stages, sys.argv[1:]))
