"""`python -m compressor STAGE`."""

from compressor.cli import main
from compressor.stages import stages

main(stages)
