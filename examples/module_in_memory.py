"""A module of your own program, which no folder holds: scored, cut, repaired and saved where it is.

    python examples/module_in_memory.py [SOURCE [DEST [KEEP]]]

The module is one of transformers (here SOURCE after a few steps of a training of its own). Of a module
that is not, the kernels take the tensors: `moments`, `colsum`, `compact` (docs/kernels.md).
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import compressor


def trained(source: str, ids: torch.Tensor) -> torch.nn.Module:
    """What your program has in memory."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for row in ids[:4, None]:
        model(row, labels=row).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def main(source="examples/tiny-llama", dest="build/module-80", keep="0.8") -> None:
    text = compressor.tokens("stdlib", source, samples=16, length=128)
    ids = torch.stack([row for row in text.sequences if len(row) == 128]).long()
    model = trained(source, ids)
    plan = compressor.plan(compressor.score(model, ids), keep_blocks=float(keep))
    small = compressor.repair(compressor.cut(model, plan), model, ids)
    before, after = (compressor.evaluate(each, ids)["perplexity"] for each in (model, small))
    folder = compressor.save(small, dest, AutoTokenizer.from_pretrained(source))
    print(f"{folder}: perplexity {before:.2f} -> {after:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
