"""docs/families.md from what the tests of the families have seen (`make families`).

python docs/make_families.py RESULTS.xml     of tests/model/families/test_matrix.py, by pytest --junitxml
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill
from xml.etree import ElementTree

from compressor.analysis.inspection.loaders.vllm import WRAPPED
from compressor.config.layouts import LAYOUTS
from compressor.model.families import FAMILIES
from compressor.model.families.wrappers import WRAPPERS
from compressor.scoring.methods import METHODS, WITHIN

HEAD = """# Model families

What `make families` saw of a small random model of each family: scored by every method, cut at two
ratios, repaired, written, loaded again, its logits compared with the masked source's, and text generated
with a dynamic, a static and no cache. `stock` is loaded by plain transformers, `shipped code` needs
`trust_remote_code=True`. FFN and heads are the fewest channels and KV groups that a cut left, and of
how many; of a mixture the first are whole experts, and its methods are named. Channels inside of
experts (`--experts channels`) are scored by
{WITHIN}.
A Baichuan 7B is read and written as `llama`; the row `baichuan` is the 13B.
[How a family is added](adding-a-family.md).

Whole blocks (`--drop-blocks`) go from all of them in the uniform layout, Bloom's and Baichuan's
widths staying as their classes have them; what a config says of every block stays with it.

The hidden size (`--keep-hidden`) of all of them is cut in the uniform layout, heads staying as they are
(`head_dim` is written), but for those whose class makes heads, or norms of all heads, of it: Baichuan
13B, Bloom, Falcon, GPT-2, GPT-NeoX, OLMoE and OPT, models of texts and images, whose projector gives as
many channels, hybrids and DeepSeek's mixtures. Gemma's classes multiply the embedding by the root of the
hidden size; what a smaller one takes away is put into the embedding and, where this is the head, out of
the last norm.

Models of texts and images are read as the language models inside of them, whose config is
`text_config`: `gemma3`, `llava`, `llava_next`, `mistral3`, `qwen2_vl`, `qwen2_5_vl`, `qwen3_5` and
`qwen3_5_moe`, around a `gemma3_text`, `llama`, `mistral`, `phi3`, `qwen2`, `qwen3` or hybrid. That
model is scored, cut, repaired and trained; vision tower and projector are copied byte for byte, under
the names and in the form that the source has, and the result loads in the source's own class
(`AutoModelForImageTextToText`). The verification loads the source in it, too, and compares logits on
text. `--keep` and `--target` in parameters are of the language model, a bound in bytes is of the whole
folder. Layouts are `uniform` and `padded`; such models are not packed by `--quantize`. Qwen2-VL's
language model turns queries and keys by three positions, which on text are equal, so that it is a
`qwen2` there; its class has hidden size / heads channels a head, so its heads stay.

Hybrids (`qwen3_5_text`, and with experts `qwen3_next` and `qwen3_5_moe_text`) have blocks of two
kinds, by `layer_types`. FFN channels, or whole experts, go from all of them, and without experts KV
groups, with the gates of their query heads, from those with softmax attention; linear attention stays
as it is, bit for bit, and the repair of such a block is that of its FFN. In mixtures of Qwen's,
blocks that have one FFN and no experts (`mlp_only_layers`, `decoder_sparse_step`) keep it whole.
`--keep-blocks` is a share of all matrices of the blocks, those that stay among them. A dropped block
takes its kind along; some softmax attention, and some experts, have to stay. A head that predicts
further tokens (MTP, `mtp.`) is of the uncut model: transformers reads none, so it is left out with a
note, and the setting that counts its blocks becomes 0. Layouts are `uniform` and, without experts,
`padded`; `--quantize`, `sparsify`, `doctor` and the tables of `estimate --costs` refuse blocks of
several kinds. The KV cache of an `estimate` has the state of linear attention in it, in float32, as
transformers keeps it. transformers 4.57 has no class of Qwen3.5. Llama 4 is refused: its experts read
what the router has multiplied.

Of `deepseek_v2` and `deepseek_v3` (R1, Moonlight, Kimi K2) latent attention stays whole, and of these
and `glm4_moe` the FFN of the first blocks (`first_k_dense_replace`) and the shared expert. Where a
router chooses groups of experts first (`n_group`, `topk_group`), as many experts stay in each, and in
all as many as its choice takes; its bias (`e_score_correction_bias`) goes with the experts, and is
computed with in float32. A shared expert is so many experts wide (`n_shared_experts`), so that channels
(`--experts channels`) go down to widths that divide its own, which are few. Blocks behind the last one
predict further tokens (MTP) and are left out with a note. Their hidden size is not cut, and they are
not exported for llama.cpp. vLLM 0.32 runs latent attention on a CPU with `VLLM_MLA_DISABLE=1` alone, and
gives an uncut model other log-probabilities there than transformers (by 3.3 of their standard
deviation), so results were not judged by it; GLM 4.5's, tried by hand, are within 4e-06.

Quantised sources are dequantised while they are read: FP8 with scales of blocks (`quant_method` `fp8`,
as DeepSeek and Qwen publish it) and the compressed-tensors formats that `--quantize` writes. What is
cut is the dense model that the numbers stand for, and so is the result, in the dtype that the config
names; its verification compares it with the source as it is read. Others are refused, with what makes a
dense copy.

`make compat` loads such results, written here, in transformers 4.57.6 and in the newest: all families
but Baichuan and hybrids, whatever layouts they have, with the same logits and, where `inspect` answers
yes for 4.57, the same ids. (4.57 computes Gemma 2 by an attention without its soft caps unless it is
loaded with `attn_implementation="eager"`, uncut models too.) A mixture's result loads in 4.57 where its
files have experts one by one, as published ones do, and not where they are one behind the other. A
model of texts and images does where its source is written as version 4 and the hub have it; version 5
calls the tensors of some vision towers and the rotary settings of Qwen2-VL otherwise, and results are
called as their source.

vLLM's class of Qwen2 has hidden size / heads channels a head, whatever the config says, so a Qwen2
that lost KV groups is written as `llama` with biases, that of `o_proj` being zeros. Where that
computes something else (sliding windows), the heads stay, or `container="qwen2"` (in Python;
`--container` of the stages) writes what transformers alone loads. Tried by hand in vLLM 0.32.0 on a CPU,
in float32: a Qwen2 of 135 M parameters cut to 0.7 of them (6 of 9 heads) and its source give the greedy
tokens that transformers 5.23 gives, 24 for each of three prompts.

All heads of an OLMo 2 stay, and of a Command R+ (`use_qk_norm`): norms of queries and keys are of all of
them. Those of a Falcon stay because its class has hidden size / heads channels a head. A Falcon
with fewer FFN channels is for transformers: vLLM's class has 4 x hidden of them, always. Falcon 7B, 40B,
180B, Falcon 2 and the RW models have one row; Falcon 3 is a `llama`.

The last two columns are what `make serve` saw, on a CPU in float32, of random models with heads of 32
channels that lost half of their KV groups and FFN channels, or of their experts: the layouts that vLLM
{VLLM} loads, and those that `compressor export` writes for llama.cpp (xllamacpp {LLAMA_CPP}). In each
of them the log-probabilities of all tokens after four prompts are within {WITHIN:.0e} of their standard
deviation of what transformers computes, and 24 greedy tokens after each prompt are the same; llama.cpp
makes the same ids of 200 strings (but for characters that a tokenizer composes first) and the same text
of a chat. A model with two exchanged KV groups fails these checks. `nas` was also served over HTTP: by
`vllm serve` with this package installed, without it by `--trust-remote-code`, and without either it is
refused.

{LARGER}

Quantised folders, of a Llama (`make serve`): vLLM loads `fp8` (in float32; log-probabilities within
{FP8} of their standard deviation of transformers', since an input near the middle of two FP8 numbers
is rounded either way) and `w4a16` (in bfloat16, which its 4-bit kernel for CPUs has alone; within
{W4A16}, both sides rounding). `nvfp4a16` has no kernel for CPUs there (`MarlinNvFp4LinearKernel`): by
its rules it runs on a GPU. All three give transformers' own logits again where compressed-tensors {CT}
reads them, which vLLM brings. llama.cpp quantises a GGUF file itself.

A cut can draft for its source (transformers' assisted generation; `bench/drafted.py`): SmolLM2-135M
takes 1.7 to 3.2 tokens a step from its cut to 0.8 of the blocks. On a CPU that is slower all the same,
since a draft of 113 M parameters costs nearly as much as the 135 M that it spares.

| `model_type` | scored by | FFN | heads | uniform | nas | per-layer | padded | vLLM | llama.cpp |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
OTHER = "transformers"  # with another compressed-tensors
SERVED = Path(__file__).parent.parent / "bench/results/serve.json"


def read(results: Path) -> dict[str, list[dict[str, str]]]:
    """The properties that each passed test recorded, by family."""
    found = defaultdict(list)
    for case in ElementTree.parse(results).iter("testcase"):
        if {"failure", "error", "skipped"} & {child.tag for child in case}:
            raise SystemExit(f"{case.get('name')} did not pass; no table is made of that.")
        seen = {p.get("name"): p.get("value") for p in case.iter("property")}
        if "family" in seen:
            found[seen["family"]].append(seen)
    return found


def served_layouts(rows: list[dict], family: str, engine: str) -> str:
    """The layouts of a family that an engine loads, of those that were tried."""
    loaded = [
        layout
        for layout in LAYOUTS
        for row in rows
        if row["name"] == f"{family}-{layout}" and row["engine"].startswith(engine) and row["loads"]
    ]
    return ", ".join(loaded) or "none"


def larger(rows: list[dict]) -> str:
    """What was seen of mixtures in the other form of their files, and of models of texts and images."""

    def loaded(layout: str, kinds: Iterable[str], engine: str) -> list[str]:
        names = {r["name"] for r in rows if r["loads"] and r["engine"].startswith(engine)}
        return [kind for kind in kinds if f"{kind}-{layout}" in names]

    mixtures = [name for name, family in FAMILIES.items() if family.experts]
    stacked = loaded("stacked", mixtures, "vLLM")
    wrapped = [
        f"`{kind}` (a `{WRAPPED[WRAPPERS[kind].architecture][0]}`)"
        for kind in loaded("uniform", WRAPPERS, "vLLM")
    ]
    exported = loaded("uniform", WRAPPERS, "llama.cpp")
    narrow = [quoted(loaded("narrow", mixtures, engine)) for engine in ("vLLM", "llama.cpp")]
    return (
        "Mixtures whose files have experts one behind the other were served as well: vLLM loads "
        f"{quoted(stacked)}, and exported are {quoted(loaded('stacked', mixtures, 'llama.cpp'))}. "
        f"Of mixtures with half of the channels of every expert vLLM loads {narrow[0]}, and exported "
        f"are {narrow[1]}. "
        "Models of texts and images were tried on texts alone, each around one language model: vLLM "
        f"loads {', '.join(wrapped)}; `compressor export` writes the language model of "
        f"{quoted(exported)}."
    )


def quoted(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def head_of(rows: list[dict]) -> str:
    """The text above the table, with the versions and the largest difference of what was served."""

    def version(engine: str) -> str:
        return next(
            r["version"] for r in rows if r["engine"].startswith(engine) and r.get("version")
        )

    def near(scheme: str) -> float:
        return next(r["within"] for r in rows if r["name"] == f"llama-{scheme}" and r["loads"])

    kinds = {f"{family}-{layout}" for family in (*FAMILIES, *WRAPPERS) for layout in LAYOUTS}
    found = [row.get("within") for row in rows if row["loads"] and row["name"] in kinds]
    within = max(filter(None, found))
    return (
        HEAD.replace("{VLLM}", version("vLLM"))
        .replace("{LLAMA_CPP}", version("llama.cpp"))
        .replace("{WITHIN:.0e}", f"{within:.0e}")
        .replace("{WITHIN}", quoted([m.name for m in METHODS.values() if WITHIN in m.units]))
        .replace("{LARGER}", fill(larger(rows), 105, break_on_hyphens=False))
        .replace("{CT}", version(OTHER))
        .replace("{FP8}", f"{near('fp8'):.0e}")
        .replace("{W4A16}", f"{near('w4a16'):.2f}")
    )


def row(family: str, cells: list[dict[str, str]], notes: list[str], served: list[dict]) -> str:
    """A line of the table; refusals become numbered notes."""

    def outcome(seen: list[dict[str, str]]) -> str:
        shown = dict.fromkeys(
            note(s["outcome"]) if s["outcome"].startswith("refused") else s["outcome"] for s in seen
        )
        return ", or ".join(shown)

    def note(outcome: str) -> str:
        named = rf"\b{family}\b(?!,|\))"  # not where all of some kind are listed
        sentence = re.sub(named, "this type", outcome.removeprefix("refused: "))
        if sentence not in notes:
            notes.append(sentence)
        return f"refused ({notes.index(sentence) + 1})"

    methods = [c for c in cells if "method" in c]
    refused = [f"{c['method']} {note(c['outcome'])}" for c in methods if c["outcome"] != "scored"]
    whole = FAMILIES[family].experts and dict.fromkeys(c["method"].split(":")[0] for c in methods)
    scored = (", ".join(whole) if whole else "all methods of channels") + (
        ", but " + ", ".join(refused) if refused else ""
    )
    counts = {g: [c[g] for c in cells if g in c] for g in ("ffn", "attention")}
    # What has no units is whole in every cut.
    fewest = {
        g: "whole" if "whole" in seen else min(seen, key=lambda text: int(text.split()[0]))
        for g, seen in counts.items()
    }
    layouts = [outcome([c for c in cells if c.get("layout") == layout]) for layout in LAYOUTS]
    engines = [served_layouts(served, family, engine) for engine in ("vLLM", "llama.cpp")]
    shown = [f"`{family}`", scored, fewest["ffn"], fewest["attention"], *layouts, *engines]
    return "| " + " | ".join(shown) + " |\n"


def main(results: Path) -> None:
    seen, notes, served = read(results), [], json.loads(SERVED.read_text())["rows"]
    rows = [row(family, seen[family], notes, served) for family in FAMILIES]
    text = head_of(served) + "".join(rows)
    if notes:
        text += "\nRefusals:\n\n" + "".join(f"{i}. {note}\n" for i, note in enumerate(notes, 1))
    (Path(__file__).parent / "families.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
