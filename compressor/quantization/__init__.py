"""Four-bit weights (`--quantize w4a16`): symmetric integers from -8 to 7 with one scale a group.

The projections of the blocks are quantised; embedding, head, norms and biases stay as they are. The
files are in compressed-tensors' pack-quantized format, which transformers and vLLM read.
"""
