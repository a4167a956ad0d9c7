"""`make serve`: one quantised folder in the transformers and the compressed-tensors that vLLM brings.

    python tests/serving/in_transformers.py KNOWN.json FOLDER RESULT.json     with vLLM's own interpreter

RESULT.json has the log-probabilities of what follows each prompt, or the error.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch


@torch.no_grad()
def main(known: Path, folder: Path, result: Path) -> None:
    from transformers import AutoModelForCausalLM

    told = json.loads(known.read_text())
    found: dict = {"version": version("compressed-tensors")}
    try:
        dtype = getattr(torch, told["dtype"])
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        rows = (model(torch.tensor([ids])).logits[0, -1].float() for ids in told["prompts"])
        found["following"] = [row.log_softmax(-1).tolist() for row in rows]
    except Exception as error:  # whatever it raises, it does not load
        found["error"] = f"{type(error).__name__}: {error}"
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
