"""The head of a model card, by which hubs and their clients know a model.

Of the source's own card come the licence and the languages; its name is the hub's where the folder lies
in the hub's cache, and else the folder's, never a place on somebody's disk.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from compressor.config.hub_names import called
from compressor.config.json_files import object_in
from compressor.model.families.wrappers import wrapper_of

CARD, MARK = "README.md", "---"
HEAD = re.compile(r"\ufeff?\s*---\s*\n(.*?)\n---\s*?(?:\n|$)", re.DOTALL)
MOST = 1 << 16  # characters of a card's head, and more are not one's
COPIED = ("license", "license_name", "license_link", "language")


def head(folder: Path, source: Path, tags: Sequence[str], **more: str) -> str:
    """The YAML between two marks that the card of a result in `folder` begins with."""
    wraps = wrapper_of(object_in(folder / "config.json"))
    told = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text" if wraps else "text-generation",
        "base_model": called(source),
        **more,
        **copied(source / CARD),
        "tags": [*tags],
    }
    return f"{MARK}\n{yaml.safe_dump(told, sort_keys=False, allow_unicode=True)}{MARK}"


def copied(card: Path) -> dict[str, Any]:
    """What goes along from the source's card: texts and lists of them alone; nothing of a broken one."""
    try:
        with card.open(encoding="utf-8") as file:
            begun = file.read(MOST)
        found = HEAD.match(begun)
        said = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    known = said if isinstance(said, dict) else {}
    return {key: known[key] for key in COPIED if is_text(known.get(key))}


def is_text(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, str) and each for each in value)
    return isinstance(value, str) and bool(value)
