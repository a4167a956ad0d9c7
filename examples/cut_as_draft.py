"""A cut model drafts for its source: speculative decoding, whose text is the source's own.

    python examples/cut_as_draft.py [SOURCE [DEST [KEEP_BLOCKS]]]

In vLLM (by its rules): vllm serve SOURCE --speculative-config \
    '{"method": "draft_model", "model": "DEST", "num_speculative_tokens": 4}'
A draft pays where it is much faster than its source: cut deeper than for use (0.5), of a large model.
`bench/drafted.py SOURCE DEST` measures speeds.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import compressor

PROMPTS = ("def read_lines(path):\n", "import os\n\nclass ", "    return [")
TOKENS = 48


def main(source="examples/tiny-llama", dest="build/draft", keep="0.5") -> None:
    texts = {"calibration": "stdlib", "samples": 32, "length": 128, "fast": True}
    compressor.compress(source, dest, keep_blocks=float(keep), **texts)
    model, draft = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (source, dest)
    )
    tokenizer, steps = AutoTokenizer.from_pretrained(source), []
    model.register_forward_pre_hook(lambda *_: steps.append(1))
    asked = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        steps.clear()
        found = model.generate(ids, assistant_model=draft, **asked)
        print(f"{prompt!r}: {(found.shape[1] - ids.shape[1]) / len(steps):.2f} tokens a step")


if __name__ == "__main__":
    main(*sys.argv[1:])
