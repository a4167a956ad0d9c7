"""`make serve`: one folder in vLLM (offline, in the dtype that transformers computed in).

    python tests/serving/in_vllm.py KNOWN.json FOLDER RESULT.json     with vLLM's own interpreter

RESULT.json has the log-probabilities of what follows each prompt and the greedy tokens, or the error.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # an engine in this process starts in seconds
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


def with_images(torchvision: str) -> None:
    """Have classes of images be imported, whose text alone is asked for.

    They import torchvision, whose wheels are for another build of torch than vLLM's for CPUs: it is
    found in a folder of its own, its two operators that have to be there are declared, and vLLM looks
    at its classes in this process, not in one where nothing is declared.
    """
    import torch
    from vllm.model_executor.models import registry

    sys.path.append(torchvision)
    for name in ("nms", "qnms"):
        takes = "(Tensor boxes, Tensor scores, float least) -> Tensor"
        torch.library.define(f"torchvision::{name}", takes)
    registry._run_in_subprocess = lambda look: look()


def main(known: Path, folder: Path, result: Path) -> None:
    import vllm

    told = json.loads(known.read_text())
    if told["images"]:
        with_images(str(Path(sys.executable).parents[1] / "torchvision"))
    vocabulary, length = len(told["following"][0]), len(told["greedy"][0])
    try:
        engine = vllm.LLM(
            str(folder),
            trust_remote_code=True,
            dtype=told["dtype"],
            enforce_eager=True,
            max_model_len=128,
            max_logprobs=vocabulary,
            limit_mm_per_prompt={"image": 0, "video": 0} if told["images"] else None,
        )
        asked = vllm.SamplingParams(
            temperature=0,
            max_tokens=length,
            ignore_eos=True,
            logprobs=vocabulary,
            logit_bias={told["eos"]: -100.0},  # does not change the log-probabilities that are told
        )
        prompts = [{"prompt_token_ids": ids} for ids in told["prompts"]]
        outputs = [given.outputs[0] for given in engine.generate(prompts, asked)]
        found = {
            "greedy": [[*output.token_ids] for output in outputs],
            "following": [
                [output.logprobs[0][token].logprob for token in range(vocabulary)]
                for output in outputs
            ],
        }
    except Exception as error:  # whatever it raises, it does not load
        found = {"error": f"{type(error).__name__}: {error}"}
    result.write_text(json.dumps({"version": vllm.__version__} | found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
