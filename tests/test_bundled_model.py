"""The bundled model is what the README and the demo say it is."""

from pathlib import Path

import pytest
import torch

from compressor.evaluation.reference import perplexity
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.text.texts import read_text
from compressor.text.tokens import tokenize

FOLDER = Path(__file__).parent.parent / "examples/tiny-llama"


def test_shape_and_size():
    checkpoint = Checkpoint(FOLDER)
    assert (FOLDER / "model.safetensors").stat().st_size <= 12_000_000
    assert checkpoint.dtype == torch.bfloat16
    assert checkpoint.kv_heads >= 4 and checkpoint.heads == 2 * checkpoint.kv_heads
    assert checkpoint.blocks >= 6 and checkpoint.units["ffn"] >= 512
    assert 2000 <= checkpoint.config["vocab_size"] <= 4096


def test_it_has_learnt_something():
    """Far below the vocabulary's 4,096, on modules it never saw."""
    checkpoint = Checkpoint(FOLDER)
    text = read_text("stdlib-held-out")
    tokens = tokenize(text, checkpoint.tokenizer(), 512, selected="0:40")
    assert perplexity(BlockStream(checkpoint), tokens)["perplexity"] < 60


@pytest.mark.slow
def test_bits_per_byte_beat_xz():
    """Over the whole held-out text, as the training script measured it."""
    import importlib.util
    import lzma

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from compressor.text.stdlib_text import stdlib_documents

    path = FOLDER.parent / "train_tiny_llama.py"
    spec = importlib.util.spec_from_file_location("train_tiny_llama", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    held_out = stdlib_documents("held-out")
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    found = script.bits_per_byte(model, tokenizer, held_out, 512)
    data = "".join(held_out).encode()
    assert found < 8 * len(lzma.compress(data, preset=9)) / len(data)
