"""The two prunable parts of a block, by name."""

GROUPS = ("attention", "ffn")
