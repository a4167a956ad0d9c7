"""Folders read as a model of another type, which transformers has and which computes the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

from compressor.model.families import nas, rotary_baichuan
from compressor.model.families.wrappers import WRAPPERS, Wrapper, wrapper_of

Entries = dict[str, SimpleNamespace]


@dataclass(frozen=True)
class Translation:
    """applies: whether it is for a config. config: what stands for it. tensors: the header entries by
    the other type's names, of those in the files and the vocabulary. coded: whether transformers runs
    such a folder by code of somebody else's, so that its tokenizer is read without the config. wrapper:
    the type whose language model it is, where the folder holds more than that.
    """

    applies: Callable[[Mapping], bool]
    config: Callable[[Mapping], dict]
    tensors: Callable[[Entries, int | None], Entries] = lambda tensors, vocabulary: tensors
    coded: bool = False
    wrapper: Wrapper | None = None


def is_of(wrapper: Wrapper, config: Mapping) -> bool:
    return wrapper_of(config) is wrapper


TRANSLATIONS = (
    Translation(
        rotary_baichuan.is_rotary,
        rotary_baichuan.llama_config,
        rotary_baichuan.llama_tensors,
        coded=True,
    ),
    Translation(nas.is_nas, nas.llama_config),
    *(
        Translation(partial(is_of, each), each.config, each.tensors, wrapper=each)
        for each in WRAPPERS.values()
    ),
)


def translation_of(config: Mapping) -> Translation | None:
    return next((each for each in TRANSLATIONS if each.applies(config)), None)
