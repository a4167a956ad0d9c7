"""`python -m compressor STAGE`."""

from compressor.cli.stages import main

main()
