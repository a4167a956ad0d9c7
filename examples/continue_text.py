"""Show how models continue the same text: `python examples/continue_text.py DIR [DIR ...]`.

Plain transformers, greedy decoding; nothing of this package is imported.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

PROMPT = 'def read_lines(path):\n    """Return the lines of a file'


def continuation(folder: str, prompt: str = PROMPT, tokens: int = 48) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        made = model.generate(ids, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(made[0], skip_special_tokens=True)


if __name__ == "__main__":
    logging.disable_progress_bar()
    for folder in sys.argv[1:]:
        print(f"--- {folder}\n{continuation(folder)}\n")
