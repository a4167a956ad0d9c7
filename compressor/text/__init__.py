"""Texts, their tokens, and tokenizers."""
