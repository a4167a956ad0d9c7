"""Models of texts and images, read as the language model inside of them.

config.json has the language model's settings in `text_config`, and files have its tensors under a name
of its own. What is scored, cut and repaired is that model, of one of the families; the vision tower and
the projector go along as they are. What is written is the wrapper again, of other widths.

Qwen2-VL's language model turns queries and keys by three positions at once, which on text are the same,
so there it is a Qwen2; its class has hidden size / heads channels a head, so heads of it stay.
"""

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from compressor.errors import InputError, in_a_line
from compressor.model.families import FAMILIES, Family

Entries = dict[str, SimpleNamespace]

TEXT, VISION = "text_config", "vision_config"
LAYERS = "model.language_model.layers"  # of every wrapper's class, whatever its files call them
HEAD = "lm_head.weight"
# What files call the language model and its head: transformers before 4.52 and from 5 on, the versions
# between; and Qwen2-VL's on the hub, where `model.visual` is not of it.
BASES = (
    ("language_model.model.", f"language_model.{HEAD}"),
    ("model.language_model.", HEAD),
    ("model.", HEAD),
)
NOT_TEXT = re.compile(r"model\.(visual|vision_tower|multi_modal_projector|image_newline)\b")
DTYPES = ("dtype", "torch_dtype")
# What a config says of the whole folder and not of the language model.
OF_THE_FOLDER = (
    *(*DTYPES, "transformers_version", "tokenizer_class"),
    *("quantization_config", "transformers_weights"),
)
# Their heads are a linear map of the last norm's output, as every wrapper's own is.
PLAIN_HEADS = (
    "gemma3_text",
    "llama",
    "mistral",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_5_moe_text",
    "qwen3_5_text",
)


@dataclass(frozen=True)
class Wrapper:
    """A model type. text_type: its language model's where config.json does not say. types: families of
    language models by the types that it has names of its own for. stays: settings of the language model
    that the class does not read as the family's does; they are neither read nor written anew. changes:
    what of the family's table is otherwise inside of it.
    """

    model_type: str
    architecture: str
    text_type: str
    types: Mapping[str, str] = field(default_factory=dict)
    stays: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)

    def text_of(self, config: Mapping) -> dict:
        """The settings of the language model as they are written: Qwen2-VL's old ones are beside the
        others.
        """
        text = config.get(TEXT)
        if text is None:
            text = {key: value for key, value in config.items() if key != VISION}
            text.pop("model_type", None)
        if not isinstance(text, dict):
            raise InputError(f"{TEXT} of a {self.model_type} model is no object, but {text!r:.60}.")
        return text

    def family(self, config: Mapping) -> str:
        """The family of the language model; InputError where it is none that is read here."""
        named = self.text_of(config).get("model_type") or self.text_type
        family = self.types.get(named, named)
        if family not in PLAIN_HEADS:
            raise InputError(
                f"The language model of this {self.model_type} is of the type {named!r}; inside of "
                f"models of texts and images these are read: {', '.join(PLAIN_HEADS)}."
            )
        return family

    def config(self, config: Mapping) -> dict:
        """The language model's config, completed by what the whole says of it."""
        check_class(config, self)
        family = self.family(config)
        kept = {
            key: value
            for key, value in self.text_of(config).items()
            if key not in (*DTYPES, "auto_map", *self.stays)
        }
        said = {key: config[key] for key in OF_THE_FOLDER if config.get(key) is not None}
        dtypes = {key: said.pop(key) for key in DTYPES if key in said}
        text_dtypes = {key: v for key, v in self.text_of(config).items() if key in DTYPES and v}
        return (
            kept
            | said
            | (dtypes or text_dtypes)
            | self.turned(config)
            | {
                "model_type": family,
                "architectures": [FAMILIES[family].architecture],
                "tie_word_embeddings": ties(config),
            }
        )

    def inside(self, family: Family) -> Family:
        """The table of the language model as it is inside of the wrapper's class."""
        return replace(family, inside=self.model_type, own_widths=False, **self.changes)

    def turned(self, config: Mapping) -> dict:
        """Rotary settings in the place of those that stay."""
        if "rope_theta" not in self.stays:
            return {}
        text = self.text_of(config)
        rope = {**(text.get("rope_parameters") or {}), **(text.get("rope_scaling") or {})}
        theta = rope.get("rope_theta", text.get("rope_theta", 1_000_000.0))
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "mrope"):
            raise InputError(
                f"The rotary embedding of this {self.model_type} is {kind!r}; those are read that are "
                "not scaled."
            )
        return {"rope_theta": theta}

    def tensors(self, tensors: Mapping[str, SimpleNamespace], vocabulary: int | None) -> Entries:
        """The language model's header entries, by its own names."""
        named = [names for names in BASES if f"{names[0]}embed_tokens.weight" in tensors]
        base, head = (named or BASES)[0]
        entries = {HEAD: tensors[head]} if head in tensors else {}
        for name, entry in tensors.items():
            if name.startswith(base) and not NOT_TEXT.match(name):
                entries["model." + name.removeprefix(base)] = entry
        return entries

    def with_text(self, config: Mapping, changed: Mapping) -> dict:
        """config.json of the whole, of the language model's config as it is to be.

        Only what differs from what was read is changed, so that all else stays as it is spelled.
        """
        read, whole = self.config(config), deepcopy(dict(config))
        text = whole[TEXT] if whole.get(TEXT) is not None else whole
        whole.pop("transformers_weights", None)
        for key in read.keys() - changed.keys():
            (whole if key in OF_THE_FOLDER else text).pop(key, None)
        for key, value in changed.items():
            if key not in (*OF_THE_FOLDER, *self.stays) and (key not in read or read[key] != value):
                text[key] = value
        if read["tie_word_embeddings"] != changed["tie_word_embeddings"]:
            whole["tie_word_embeddings"] = changed["tie_word_embeddings"]
        for key in DTYPES:
            if key in changed:
                whole[key] = changed[key]
                if key in text:
                    text[key] = changed[key]
        return whole


def check_class(config: Mapping, wrapper: Wrapper) -> None:
    """Refuse another model of the type, which predicts no tokens."""
    named = config.get("architectures") or [wrapper.architecture]
    if wrapper.architecture not in named:
        raise InputError(
            f"The config is of a {named[0]} (architectures), and of the type {wrapper.model_type} a "
            f"{wrapper.architecture} is read."
        )


def ties(config: Mapping) -> bool:
    """Whether the wrapper's class ties the head to the embedding."""
    from transformers import AutoConfig

    try:
        return bool(AutoConfig.for_model(**deepcopy(dict(config))).tie_word_embeddings)
    except Exception as error:  # whatever the class raises, it is the config that it cannot take
        raise InputError(f"transformers refuses this config: {in_a_line(error)}") from error


MULTIPLE_POSITIONS: dict[str, Any] = {
    "stays": ("rope_parameters", "rope_scaling", "rope_theta"),
    "changes": {"heads_fixed": True, "served_by_division": False, "container": None},
}
WRAPPERS = {
    wrapper.model_type: wrapper
    for wrapper in (
        Wrapper(
            "gemma3",
            "Gemma3ForConditionalGeneration",
            "gemma3_text",
            stays=("final_logit_softcapping",),  # its own head has none
        ),
        Wrapper("llava", "LlavaForConditionalGeneration", "llama"),
        Wrapper("llava_next", "LlavaNextForConditionalGeneration", "llama"),
        Wrapper("mistral3", "Mistral3ForConditionalGeneration", "mistral"),
        Wrapper(
            "qwen2_vl",
            "Qwen2VLForConditionalGeneration",
            "qwen2_vl_text",
            types={"qwen2_vl_text": "qwen2"},
            **MULTIPLE_POSITIONS,
        ),
        Wrapper(
            "qwen2_5_vl",
            "Qwen2_5_VLForConditionalGeneration",
            "qwen2_5_vl_text",
            types={"qwen2_5_vl_text": "qwen2"},
            **MULTIPLE_POSITIONS,
        ),
        Wrapper("qwen3_5", "Qwen3_5ForConditionalGeneration", "qwen3_5_text"),
        Wrapper("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe_text"),
    )
}


def wrapper_of(config: Mapping) -> Wrapper | None:
    return WRAPPERS.get(str(config.get("model_type")))
