"""Fixtures of what takes seconds to make and several tests look at."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import compress

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="session")
def small_examples(make_checkpoint, tmp_path_factory) -> Path:
    """The folder `examples`, with a smaller model under the same name and with the same tokenizer."""
    folder = tmp_path_factory.mktemp("small") / "examples"
    shutil.copytree(EXAMPLES, folder)
    model, special = folder / "tiny-llama", {"bos_token_id": 0, "eos_token_id": 1}
    sizes = {"vocab_size": 4096, "intermediate_size": 768, "num_hidden_layers": 2}
    sizes |= {"max_position_embeddings": 128, "tie_word_embeddings": True, "pad_token_id": None}
    make_checkpoint(model, **sizes, **special)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLES / "tiny-llama" / name, model)
    return folder


@pytest.fixture(params=["a smaller model", pytest.param("as it is", marks=pytest.mark.slow)])
def examples_folder(request, small_examples) -> Path:
    """What documented code reads; on the bundled model itself it takes minutes."""
    return small_examples if request.param == "a smaller model" else EXAMPLES


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Callable[..., Path]:
    """The function that gives the result of a job that nothing interrupts; the same job runs once."""
    made: dict[tuple[str, ...], Path] = {}

    def result(source: Path, *arguments) -> Path:
        key = tuple(map(str, (source, *arguments)))
        if key not in made:
            folder = tmp_path_factory.mktemp("whole") / "whole"
            assert compress(source, folder, *arguments) == 0
            made[key] = folder
        return made[key]

    return result
