"""Every op's speed beside its baselines: `python -m compressor.kernels.bench OP`."""
