"""A checkpoint, and the model in it block by block."""
