"""`make serve`: one GGUF file in llama.cpp, by its HTTP server.

    python tests/serving/in_llama_cpp.py KNOWN.json FILE.gguf RESULT.json    with xllamacpp

RESULT.json has the log-probabilities of what follows each prompt, with the default cache and with one of
float32, the greedy tokens, the ids of texts and what the chat template makes; or the error.
"""

import json
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path

import xllamacpp

BIAS = 1e6  # of a printable token, without which no probabilities are told


def served(file: Path, exact: bool):
    """A server of the file; exact: keys and values are kept, and attention computed, in float32."""
    asked = xllamacpp.CommonParams()
    asked.model.path, asked.n_ctx, asked.warmup = str(file), 512, False
    if exact:
        asked.cache_type_k = asked.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        asked.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(asked)


def post(server, path: str, **body):
    request = urllib.request.Request(
        server.listening_address + path,
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


def following(server, prompt: list[int], vocabulary: int) -> list[float]:
    """The log-probability of every token after a prompt."""
    (printable,) = post(server, "/tokenize", content="a")["tokens"]
    answer = post(
        server,
        "/completion",
        prompt=prompt,
        n_predict=1,
        n_probs=vocabulary,
        temperature=0,
        cache_prompt=False,
        logit_bias=[[printable, BIAS]],
    )
    each = answer["completion_probabilities"][0]["top_logprobs"]
    return [entry["logprob"] for entry in sorted(each, key=lambda entry: entry["id"])]


def greedy(server, prompt: list[int], length: int) -> list[int]:
    asked = {"n_predict": length, "temperature": 0, "ignore_eos": True, "return_tokens": True}
    return post(server, "/completion", prompt=prompt, cache_prompt=False, **asked)["tokens"]


def main(known: Path, file: Path, result: Path) -> None:
    told = json.loads(known.read_text())
    vocabulary, length = len(told["following"][0]), len(told["greedy"][0])
    found: dict = {"version": version("xllamacpp")}
    try:
        for name, exact in (("following_default", False), ("following", True)):
            server = served(file, exact)
            found[name] = [following(server, prompt, vocabulary) for prompt in told["prompts"]]
        found["greedy"] = [greedy(server, prompt, length) for prompt in told["prompts"]]
        found["ids"] = [
            post(server, "/tokenize", content=text, add_special=True, parse_special=True)["tokens"]
            for text in told["texts"]
        ]
        found["chat"] = post(server, "/apply-template", messages=told["messages"])["prompt"]
    except Exception as error:  # whatever it raises, it does not load
        found["error"] = f"{type(error).__name__}: {error}"
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
