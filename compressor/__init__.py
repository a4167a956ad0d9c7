"""Compress Hugging Face language models into smaller dense checkpoints."""

__version__ = "0.1.0"
