"""transformers 4.57 by its rules, as they stand in 4.57.6: it keeps settings and classes elsewhere.

`make compat` gives it the results of every family and broken folders, and compares what it did.
"""

import re
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
from compressor.model.families import Family
from compressor.model.families.nas import is_nas
from compressor.model.per_layer import KEY, NAS_CODE, code_of
from compressor.writing.tokenizer_class import (
    FILE,
    STRINGS,
    config_of,
    ids_of,
    known_to_older,
    older_ids,
    strings,
)

OLDER = "transformers 4.57"
SEEN = f"{RULES}, seen in 4.57.6"
DEFAULT_THETA, DEFAULT_LOCAL_THETA = 10_000.0, 10_000.0  # of the rotary embedding
DEFAULT_SHARES = {"gpt_neox": 0.25}  # of a head's channels that are turned; all of them elsewhere
MANY_POSITIONS_THETA = 1_000_000.0
DEEPER_TOWERS = ("clip_vision_model", "siglip_vision_model")
# The class of the tokenizer where neither the tokenizer's config nor the model's names one.
TOKENIZERS = {
    "bloom": "BloomTokenizer",
    "cohere": "CohereTokenizer",
    "falcon": "PreTrainedTokenizerFast",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "granite": "GPT2Tokenizer",
    "llama": "LlamaTokenizer",
    "llava": "LlamaTokenizer",
    "llava_next": "LlamaTokenizer",
    "mistral": "LlamaTokenizer",
    "mistral3": "LlamaTokenizer",
    "mixtral": "LlamaTokenizer",
    "olmo2": "GPTNeoXTokenizer",
    "olmoe": "GPTNeoXTokenizer",
    "opt": "GPT2Tokenizer",
    "phi3": "LlamaTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen2_5_vl": "Qwen2Tokenizer",
    "qwen2_moe": "Qwen2Tokenizer",
    "qwen2_vl": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
    "qwen3_next": "Qwen2Tokenizer",
    "smollm3": "PreTrainedTokenizerFast",
    "starcoder2": "GPT2Tokenizer",
}


NO_CLASS = ("qwen3_5_moe_text", "qwen3_5_text")
UNTRIED = ("deepseek_v2", "deepseek_v3", "glm4_moe")


def older(facts: Facts) -> Answer:
    folder, widths = facts.folder, facts.widths
    if not widths:
        return Answer(OLDER, None, UNKNOWN)
    if folder.family.model_type in NO_CLASS:
        return Answer(OLDER, False, f"it has no class for {folder.family.model_type}", SEEN)
    if folder.family.model_type in UNTRIED:
        return Answer(OLDER, None, f"{folder.family.model_type} was not tried with it")
    if folder.packing:
        return Answer(OLDER, None, "it has compressed-tensors' loader, which was not tried")
    shipped = facts.coded is not None
    target = f"{OLDER}, trust_remote_code" if shipped else OLDER
    facts = replace(facts, here=facts.coded or facts.here)
    own = (experts, vision, rotation, positions)
    checks = (files, disagreement, tensors, *own, padding, head, no_tokenizer, tokenizer)
    if reason := first_of(checks, facts):
        return Answer(OLDER, False, reason, SEEN)
    reason = different(widths)
    if reason and not (folder.config.get(KEY) and shipped):
        return Answer(OLDER, False, reason, SEEN)
    if folder.config.get("auto_map") and (folder.family.alibi or not shipped):
        return Answer(f"{OLDER}, trust_remote_code", None, "its code was not tried with it")
    if not (folder.path / FILE).exists():
        return Answer(target, None, f"its tokenizer has no {FILE}, and was not tried with it")
    code = NAS_CODE if is_nas(folder.written) else code_of(folder.family)
    by = f"by {code[0].name}" if shipped else "its class has these widths"
    return Answer(target, True, f"{by}, and it reads the config and the tokenizer alike", SEEN)


def experts(facts: Facts) -> str | None:
    """It has experts one by one, and calls their number by one name."""
    folder = facts.folder
    if not folder.family.experts:
        return None
    if are_stacked(folder.stored, folder.family):
        return "its class has experts one by one, and the files hold them one behind the other"
    name = folder.family.experts.counted[0]
    return None if name in folder.written else f"it reads {name}, which the config does not say"


def vision(facts: Facts) -> str | None:
    """It has what some vision towers hold under one name more."""
    folder = facts.folder
    kind = (folder.written.get("vision_config") or {}).get("model_type") if folder.wrapper else None
    for name in folder.stored if kind in DEEPER_TOWERS else ():
        if re.match(r"(model\.)?vision_tower\.(?!vision_model\.)", name):
            return f"its vision tower has vision_tower.vision_model, and the files have {name}"
    return None


def disagreement(facts: Facts) -> str | None:
    return next(iter(facts.wrong), None)


def padding(facts: Facts) -> str | None:
    """Its embedding refuses what the installed one does."""
    if not facts.here.padding:
        return None
    config = facts.folder.config
    return (
        f"pad_token_id {config.get('pad_token_id')} is outside the vocabulary of "
        f"{config.get('vocab_size')}"
    )


def rotation(facts: Facts) -> str | None:
    """It reads the rotary embedding's settings at the top of the config and nowhere else."""
    folder = facts.folder
    if folder.family.alibi or many_positions(facts):
        return None
    read = folder.wrapper.text_of(folder.written) if folder.wrapper else folder.written
    return misread(read, folder.family)


def many_positions(facts: Facts) -> bool:
    return facts.folder.wrapper is not None and "rope_parameters" in facts.folder.wrapper.stays


def positions(facts: Facts) -> str | None:
    """Those that are three at once stand in settings of its own."""
    if not many_positions(facts):
        return None
    folder = facts.folder
    text = folder.wrapper.text_of(folder.written)
    if "mrope_section" not in (text.get("rope_scaling") or {}):
        return "it reads mrope_section in rope_scaling, where the config does not have it"
    read, theta = text.get("rope_theta", MANY_POSITIONS_THETA), folder.config.get("rope_theta")
    return None if read == theta else f"it would read rope_theta {read:g}, the model's is {theta:g}"


def misread(config: dict, family: Family) -> str | None:
    """What it reads of a config's rotary settings in the place of what the model has."""
    rope = config.get("rope_parameters") or {}
    whole, local = rope.get("full_attention", rope), rope.get("sliding_attention") or {}
    theta = family.constants.get("rope_theta", DEFAULT_THETA)
    share = DEFAULT_SHARES.get(family.model_type, 1.0)
    for setting, value, default in (
        ("rope_theta", whole.get("rope_theta"), theta),
        ("partial_rotary_factor", whole.get("partial_rotary_factor"), share),
        ("rope_local_base_freq", local.get("rope_theta"), DEFAULT_LOCAL_THETA),
    ):
        name = family.spellings.get(setting, setting)
        read = config.get(name, default)
        if value is not None and value != read:
            return f"it would read {name} {read:g}, the model's is {value:g}"
    kind = whole.get("rope_type", "default")
    if kind == "default":
        return None
    scaling = config.get("rope_scaling")
    if not scaling:
        return f"the config has rope_type {kind} but no rope_scaling"
    for name, value in whole.items():
        if name in scaling and scaling[name] != value:
            return f"it would read {name} {scaling[name]} of rope_scaling, the model's is {value}"
    return None


def head(facts: Facts) -> str | None:
    if not facts.differing_head:
        return None
    name = facts.folder.family.head
    return f"it ties the head to the embedding, and the files' own {name} is another"


def tokenizer(facts: Facts) -> str | None:
    folder, loaded = facts.folder, facts.here.tokenizer
    config = config_of(folder.path)
    by_type = TOKENIZERS.get((folder.wrapper or folder.family).model_type, "")
    name = config.get("tokenizer_class") or folder.written.get("tokenizer_class") or by_type
    if name and not known_to_older(name):
        return f"tokenizer: it has no class {name}"
    if isinstance(config.get("extra_special_tokens"), list):
        return "tokenizer: it takes a dictionary of extra_special_tokens, and they are a list"
    if not (folder.path / FILE).exists():
        return None
    texts = strings(loaded.all_special_tokens)
    pairs = zip(ids_of(loaded, texts), older_ids(folder.path, texts, name), strict=True)
    if differing := sum(here != there for here, there in pairs):
        return f"tokenizer: by {name} {differing // 2 or 1} of {STRINGS} strings get other ids"
    return None
