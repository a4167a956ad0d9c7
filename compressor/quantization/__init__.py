"""Quantised weights (`--quantize`): of the blocks' projections; embedding, head, norms and biases stay.

`scheme.py` and `clipping.py` are the arithmetic of 4-bit integers, `floats.py` that of 8- and 4-bit
floating point, `stream.py` the pass over the blocks, and `reading.py` opens what was written. The files
are in compressed-tensors' formats (`writing/packing.py`), which transformers and vLLM read.
"""
