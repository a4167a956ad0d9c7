"""llama.cpp by its rules: what its converter takes, what of that it loads, and rows of k-quants.

Folders of every family, whole and cut, went through the converter and were run by build 11549
(docs/families.md), with tokenizers put in their place that the converter knows.
"""

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
from compressor.analysis.inspection.loaders.kernels import by_multiples, input_channels
from compressor.config.json_files import object_in
from compressor.model.families.nas import is_nas
from compressor.writing.tokenizer_class import FILE, config_of

TARGET = "GGUF k-quants"
SEEN = f"{RULES}, seen in llama.cpp 11549"
SUPER_BLOCK = 256  # weights of one block of k-quants
# Architectures of the converter, and the tokenizers that it takes for them: a sentencepiece model, a
# tokenizer.json made of one, or byte-level BPE, which it knows by a checksum.
PIECES, LIKE_PIECES, BPE = "tokenizer.model", "as sentencepiece", "bpe"
CONVERTED = {
    "BloomForCausalLM": (BPE,),
    "GPT2LMHeadModel": (BPE,),
    "GPTNeoXForCausalLM": (BPE,),
    "Gemma2ForCausalLM": (PIECES,),
    "Gemma3ForCausalLM": (PIECES, BPE),
    "LlamaForCausalLM": (PIECES, LIKE_PIECES, BPE),
    "MistralForCausalLM": (PIECES, LIKE_PIECES, BPE),
    "Phi3ForCausalLM": (PIECES,),
    "Qwen2ForCausalLM": (BPE,),
    "Qwen3ForCausalLM": (BPE,),
}
NOT_CONVERTED = (None, "OPTForCausalLM")
PHI4_TOKENIZER = "GPT2Tokenizer"
# Whose heads have hidden / heads channels, and whose FFN has 4 x hidden, whatever the config says.
HEADS_BY_DIVISION = ("Phi3ForCausalLM", "Qwen2ForCausalLM")
FFN_BY_HIDDEN = ("GPT2LMHeadModel",)
NEEDED = {"GPT2LMHeadModel": "n_ctx"}  # settings that newer configs do not have


def k_quants(facts: Facts) -> Answer:
    """llama.cpp quantises rows in blocks of 256; other rows fall back to larger types."""
    if facts.folder.packing:
        return Answer(TARGET, None, "made from the dense checkpoint, not from packed weights")
    if not facts.widths:
        return Answer(TARGET, None, UNKNOWN)
    if is_nas(facts.folder.written):
        return Answer(TARGET, None, "whether its converter takes the blocks was not tried")
    if reason := different(facts.widths) or no_class(facts):
        return Answer(TARGET, False, reason, SEEN)
    if facts.architecture not in CONVERTED:
        return Answer(TARGET, None, f"{facts.architecture} was not tried with it")
    checks = (files, heads, ffn, setting, tensors, head, no_tokenizer, tokenizer)
    if reason := first_of(checks, facts):
        return Answer(TARGET, False, reason, SEEN)
    rows = by_multiples(
        TARGET, facts.widths, (("input", input_channels(facts.widths), SUPER_BLOCK),)
    )
    if not rows.loads:
        return rows
    if reason := not_known(facts):
        return Answer(TARGET, None, f"{rows.because}; {reason}", SEEN)
    window = facts.folder.written.get("sliding_window")
    beyond = facts.architecture == "MistralForCausalLM" and window
    note = f"; beyond {window} tokens it attends to more than the model" if beyond else ""
    return Answer(TARGET, True, rows.because + note, SEEN)


def no_class(facts: Facts) -> str | None:
    name = facts.architecture
    return f"llama.cpp's converter has no {name}" if name in NOT_CONVERTED else None


def heads(facts: Facts) -> str | None:
    name, block = facts.architecture, facts.widths[0]
    if name not in HEADS_BY_DIVISION or block.hidden // block.heads == block.head_dim:
        return None
    return (
        f"it has hidden size / heads channels a head for {name}, and {block.hidden} / {block.heads} "
        f"is not {block.head_dim}"
    )


def ffn(facts: Facts) -> str | None:
    name, block = facts.architecture, facts.widths[0]
    if name not in FFN_BY_HIDDEN or block.ffn == 4 * block.hidden:
        return None
    return f"it has 4 x {block.hidden} FFN channels for {name}, and there are {block.ffn}"


def setting(facts: Facts) -> str | None:
    needed = NEEDED.get(facts.architecture)
    if needed is None or needed in facts.folder.written:
        return None
    return f"its converter needs {needed} in the config"


def head(facts: Facts) -> str | None:
    name = facts.folder.family.head
    return f"{name} differs from the embedding it is tied to" if facts.differing_head else None


def tokenizer(facts: Facts) -> str | None:
    if kind_of(facts) in CONVERTED[facts.architecture]:
        return None
    return f"tokenizer: its converter wants a {PIECES} for {facts.architecture}"


def kind_of(facts: Facts) -> str:
    """Which of the tokenizers that a converter takes the folder has."""
    path, taken = facts.folder.path, CONVERTED[facts.architecture]
    if PIECES in taken and (path / PIECES).exists():
        return PIECES
    named = config_of(path).get("tokenizer_class")
    if facts.architecture == "Phi3ForCausalLM" and named == PHI4_TOKENIZER:
        return PIECES  # as good as one: it is read as BPE
    state = object_in(path / FILE)
    model, decoder = state.get("model") or {}, state.get("decoder") or {}
    like = model.get("type") == "BPE" and model.get("byte_fallback")
    like = like and decoder.get("type") == "Sequence"
    return LIKE_PIECES if like and LIKE_PIECES in taken else BPE


def not_known(facts: Facts) -> str | None:
    """What only converting shows."""
    if facts.architecture == "GPTNeoXForCausalLM":
        return "its converter reads rotary_pct, which it finds with transformers 4 beside it alone"
    if kind_of(facts) == BPE:
        return "whether its converter knows the tokenizer (byte-level BPE) a checksum in it decides"
    return None
