"""Proof that a written folder loads and computes what it should."""
