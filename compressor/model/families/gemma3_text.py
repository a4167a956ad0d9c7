"""Gemma 3, the text model: Gemma 2's blocks with norms of queries and keys, which span one head.

Blocks with a sliding window have rotary frequencies of their own.
"""

from dataclasses import replace

from compressor.model.families import gemma2

FAMILY = replace(
    gemma2.FAMILY,
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    constants=gemma2.FAMILY.constants | {"rope_theta": 1_000_000.0},
)
