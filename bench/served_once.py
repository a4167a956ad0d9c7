"""One model in one engine: the time to the first token, tokens a second, peak memory (`served.py`).

    ENGINES/bin/python bench/served_once.py vllm FOLDER | llama.cpp FILE.gguf

Prints a JSON line. It imports nothing of this package, for engines have an environment of their own.
"""

import json
import os
import resource
import statistics
import sys
import time
import urllib.request
from pathlib import Path

PROMPT, NEW, REPEATS = 128, 64, 5
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


def in_vllm(folder: str):
    """generate(tokens) of an engine that runs the folder in its own dtype."""
    import vllm

    engine = vllm.LLM(
        folder, trust_remote_code=True, max_model_len=512, enable_prefix_caching=False
    )

    def generate(count: int) -> None:
        asked = vllm.SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        engine.generate([{"prompt_token_ids": [*range(100, 100 + PROMPT)]}], asked, use_tqdm=False)

    return generate


def in_llama_cpp(file: str):
    """The same of a server that runs the file."""
    import xllamacpp

    asked = xllamacpp.CommonParams()
    asked.model.path, asked.n_ctx, asked.cpuparams.n_threads = file, 512, os.cpu_count()
    server = xllamacpp.Server(asked)

    def generate(count: int) -> None:
        body = {"prompt": [*range(100, 100 + PROMPT)], "n_predict": count, "temperature": 0}
        body |= {"ignore_eos": True, "cache_prompt": False}
        request = urllib.request.Request(
            f"{server.listening_address}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request).read()

    return generate


def seconds(generate, count: int) -> float:
    begin = time.perf_counter()
    generate(count)
    return time.perf_counter() - begin


def main(engine: str, model: str) -> None:
    generate = {"vllm": in_vllm, "llama.cpp": in_llama_cpp}[engine](model)
    generate(NEW)  # what compiles or is read at first
    first = statistics.median(seconds(generate, 1) for _ in range(REPEATS))
    whole = statistics.median(seconds(generate, NEW) for _ in range(REPEATS))
    print(
        json.dumps(
            {
                "engine": engine,
                "model": Path(model).name,
                "first_token_s": first,
                "tokens_per_s": (NEW - 1) / (whole - first),
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
