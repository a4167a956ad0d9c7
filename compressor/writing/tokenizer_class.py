"""The class that tokenizer_config.json names, where transformers 4.57 or another model type reads it.

transformers 5 saves tokenizers under classes that 4.57 has not, and its AutoTokenizer goes by the model
type, too. A result names another class where 200 strings get the same ids by it; tokenizer.json itself
is never changed.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.config.json_files import object_in
from compressor.errors import InputError
from compressor.text.tokenizer import read_tokenizer

if TYPE_CHECKING:  # they take seconds to import
    from transformers import PreTrainedTokenizerBase

    from compressor.model.source import Source

CONFIG, FILE = "tokenizer_config.json", "tokenizer.json"
NEUTRAL = "PreTrainedTokenizerFast"  # in every version: tokenizer.json as it is
# What transformers 5 saves and 4.57.6 does not find.
NEW_IN_5 = {
    *("TokenizersBackend", "PythonBackend", "SentencePieceBackend", "MistralCommonBackend"),
    *("BertTokenizerLegacy", "EsmcTokenizer", "LasrTokenizer", "Qwen3_5Tokenizer"),
    *("Siglip2Tokenizer", "Tipsv2Tokenizer", "VideoPrismTokenizer"),
}
# Classes that in 4.57 put a new end to tokenizer.json, and whether a start token goes in front unasked.
TEMPLATED = {"Llama": True, "CodeLlama": True, "Gemma": True, "Cohere": True, "GPTNeoX": False}
STRINGS = 200


def config_of(folder: Path) -> dict:
    """tokenizer_config.json; nothing where there is none, or it cannot be read."""
    return object_in(folder / CONFIG)


def known_to_older(name: str) -> bool:
    """Whether transformers 4.57 finds the class."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    base = name.removesuffix("Fast")
    return name == NEUTRAL or (
        base not in NEW_IN_5
        and any(tokenizer_class_from_name(n) is not None for n in (base, base + "Fast"))
    )


def strings(specials: Sequence[str] = ()) -> list[str]:
    """Texts that tokenizers differ on: spaces, digits, scripts, code, emoji, special tokens, noise."""
    chosen = random.Random(0)
    spaces = "| |  |\n|\n\n \n|\t| \t\r\n|\u00a0|\u3000| a|a |a  b"
    words = "Once upon a time|don't WON'T I'll|naïve café|e\u0301|" + "x" * 40
    digits = "0|12345|3.14|1,000,000|2024-01-31|a1b2c3|\uff11\uff12\uff13|٣٤"
    scripts = "Привет, мир|你好。世界|こんにちは|안녕하세요|שלום|مرحبا|नमस्ते|ไทย"
    code = "def f(x):\n    return x + 1\n|for (;;) { a[i] += 1; } // !|<a href='#'>b</a>"
    emoji = "🙂|👩‍👩‍👧|🇪🇺🇯🇵|a🙂b|\ufeffx|\u200b|\x00\x07"
    kinds = (spaces, words, digits, scripts, code, emoji)
    fixed = [text for kind in kinds for text in kind.split("|")]
    for token in specials[:20]:
        fixed += [token, f"a{token}b", f" {token} {token}"]
    ranges = ((32, 127), (160, 592), (880, 1424), (19968, 20480), (128512, 128580), (9, 14))
    while len(fixed) < STRINGS:
        length = chosen.randint(1, 30)
        fixed.append("".join(chr(chosen.randrange(*chosen.choice(ranges))) for _ in range(length)))
    return fixed[:STRINGS]


def ids_of(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Ids of every text, with special tokens around it and without."""
    return [tokenizer(t, add_special_tokens=s)["input_ids"] for t in texts for s in (True, False)]


def older_ids(folder: Path, texts: Sequence[str], name: str = NEUTRAL) -> list[list[int]]:
    """`ids_of` as 4.57 gives them by a class, from its rules.

    It takes tokenizer.json as it is, but for the space in front, which is as tokenizer_config.json says
    (by default none), and for what the classes of `TEMPLATED` put around a text.
    """
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    config = config_of(folder)
    backend = tokenizer.backend_tokenizer
    backend.post_processor = Tokenizer.from_file(str(folder / FILE)).post_processor
    prefix = config.get("add_prefix_space") or False
    if backend.pre_tokenizer is not None:
        state = json.loads(backend.pre_tokenizer.__getstate__())
        if state.get("add_prefix_space", prefix) != prefix:
            kind = getattr(pre_tokenizers, state.pop("type"))
            backend.pre_tokenizer = kind(**state | {"add_prefix_space": prefix})
    base = name.removesuffix("Fast").removesuffix("Tokenizer")
    if base in TEMPLATED:
        first = config.get("add_bos_token", TEMPLATED[base])
        last = config.get("add_eos_token", False)
        around = [tokenizer.bos_token] * first, [tokenizer.eos_token] * last
        known = [(t, tokenizer.convert_tokens_to_ids(t)) for part in around for t in part]
        template = " ".join((*around[0], "$A", *around[1]))
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=known
        )
    return ids_of(tokenizer, texts)


def name_class(checkpoint: "Source", folder: Path, moved: bool = False) -> None:
    """Have a written folder name a class by which it gives the ids that its source's tokenizer gives.

    moved: whether the model type is another one. Nothing is changed where what is named does so in 4.57
    as well, or where no class does.
    """
    named = config_of(folder).get("tokenizer_class")
    fits_older = named is None or known_to_older(named)
    if (
        checkpoint.path is None
        or checkpoint.coded
        or not (folder / FILE).exists()
        or (fits_older and not moved)
    ):
        return
    try:
        before = read_tokenizer(checkpoint.path, coded=False)
    except InputError:  # whatever it raises, there is nothing to compare with
        return
    texts = strings(before.all_special_tokens)
    expected = ids_of(before, texts)
    choices = [named] * fits_older
    choices += [NEUTRAL] * (older_ids(folder, texts) == expected)
    choices += [type(before).__name__] * moved
    written = (folder / CONFIG).read_bytes() if (folder / CONFIG).exists() else None
    for name in choices:
        config = stored = config_of(folder)
        if name in (NEUTRAL, None) and named != NEUTRAL:
            # In 4.57 that class (None: config.json names it) gives token types, which nothing takes.
            config = {"model_input_names": list(before.model_input_names)} | config
        if name != named:
            config = config | {"tokenizer_class": name}
        if config != stored:
            text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            (folder / CONFIG).write_text(text, encoding="utf-8")
        if ids_of(read_tokenizer(folder, coded=False), texts) == expected:
            return
    if written is not None:
        (folder / CONFIG).write_bytes(written)


def class_notes(source: Path, folder: Path) -> list[str]:
    """What to say of the class that a result names in the place of its source's."""
    before, now = (config_of(path).get("tokenizer_class") for path in (source, folder))
    if before == now:
        return []
    readers = "transformers 4.57 reads" if now == NEUTRAL else "the written model type reads"
    return [
        f"{CONFIG} names {now} in the place of {before}, so that {readers} it; {STRINGS} strings get "
        "the same ids."
    ]
