"""The transformers that is installed: its own loaders run, for weights on the meta device."""

import io
from contextlib import redirect_stderr
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from compressor.analysis.inspection.folder import Folder
from compressor.analysis.inspection.loaders.answer import RAN, Answer, Facts, Loading
from compressor.errors import in_a_line as sentence_of
from compressor.model.loading import auto_class
from compressor.text.tokenizer import check_files, of_the_tokenizer, read_tokenizer

if TYPE_CHECKING:  # it takes seconds to import
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def with_its_code(facts: Facts) -> Answer:
    """What it makes of the folder with its own code, which is run only where it is this package's."""
    if facts.coded:
        return by_loading(facts, "trust_remote_code", facts.coded)
    return Answer(
        "transformers, trust_remote_code", None, "the folder has code of its own, which is not run"
    )


def by_loading(facts: Facts, how: str, loading: Loading) -> Answer:
    """What the class made of the weights, and the tokenizer."""
    import transformers

    target = f"transformers {transformers.__version__} ({how})"
    reason = loading.refused or loading.tensors or facts.folder.ambiguous
    if reason is None and loading.tokenizer is None:
        reason = f"the weights load, the tokenizer does not: {loading.no_tokenizer}"
    if reason is not None:
        return Answer(target, False, reason, RAN)
    fits = "no tensor is missing, left over or of another shape, and the tokenizer loads"
    return Answer(target, True, fits, RAN)


def load_here(folder: Folder, code: bool = False) -> Loading:
    """Weights by their names and shapes, and the tokenizer.

    code: run the folder's own, which must be this package's.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer, no_tokenizer = load_tokenizer(folder)
    refused, tensors = load_weights(folder.path, code)
    padding = config_refused = False
    if refused and not code:
        config = read_config(folder.path)
        config_refused = config is None
        nearest = config or as_its_container(folder)
        if nearest is not None:
            if tokenizer is None and config_refused:
                tokenizer, no_tokenizer = load_tokenizer(folder, nearest)
            nearest.pad_token_id = None
            still, tensors = load_weights(folder.path, config=nearest)
            padding = config is not None and still is None
            tensors = still or tensors
        else:
            tensors = refused
    return Loading(refused, tensors, padding, config_refused, tokenizer, no_tokenizer)


def load_weights(
    path: Path, code: bool = False, config: "PreTrainedConfig | None" = None
) -> tuple[str | None, str | None]:
    """What is raised; what of the tensors does not fit."""
    try:
        with redirect_stderr(io.StringIO()):  # progress bars of compressed-tensors
            loaded: Any = auto_class(path).from_pretrained(
                path,
                device_map="meta",
                use_safetensors=True,
                trust_remote_code=code,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                config=config,
            )
    except Exception as error:  # whatever it raises, it does not load
        return in_a_line(error), None
    _, loading_info = loaded
    if mismatched := sorted(loading_info["mismatched_keys"]):
        name, stored, made = mismatched[0]
        shapes = f"{name} is {list(stored)}, its config makes {list(made)}"
        return None, f"{len(mismatched)} tensor(s) do not fit: {shapes}"
    if missing := sorted(loading_info["missing_keys"]):
        return None, f"{len(missing)} tensor(s) would be random: {missing[0]}"
    if unexpected := sorted(loading_info["unexpected_keys"]):
        return None, f"{len(unexpected)} tensor(s) are left out: {unexpected[0]}"
    return None, None


def read_config(path: Path) -> "PreTrainedConfig | None":
    """The config by its class; None where that refuses it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception:  # `load_weights` has said what
        return None


def as_its_container(folder: Folder) -> "PreTrainedConfig | None":
    """A config of the same tensors by the type that takes what the family's own refuses."""
    from transformers import AutoConfig

    family = folder.family
    if family is None or family.container is None or folder.wrapper:
        return None
    named = ("model_type", "architectures", "transformers_version")
    settings = {k: v for k, v in folder.written.items() if k not in named}
    try:
        return AutoConfig.for_model(
            family.container.model_type, **settings | dict(family.container.settings)
        )
    except Exception:  # it does not take them either
        return None


def load_tokenizer(
    folder: Folder, config: "PreTrainedConfig | None" = None
) -> tuple["PreTrainedTokenizerBase | None", str | None]:
    """The tokenizer, or why there is none; config: what to go by where the folder's own is refused."""
    from transformers import AutoTokenizer

    coded = folder.family is not None and not folder.family.stock
    try:
        check_files(folder.path, coded)
        if config is not None:
            with of_the_tokenizer(folder.path):
                return AutoTokenizer.from_pretrained(folder.path, config=config), None
        return read_tokenizer(folder.path, coded), None
    except Exception as error:  # whatever it raises, it does not load
        return None, in_a_line(error)


def in_a_line(error: Exception) -> str:
    return shorten(sentence_of(error), 240, placeholder=" ...")
