"""The stage that uploads a result."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a result.")],
    name: Annotated[str, typer.Argument(help="What it is to be called on the hub: ORG/NAME.")],
    private: Annotated[bool, Option("--private", help="For you alone, if it is new.")] = False,
) -> None:
    """Upload a result, with its card, to the Hugging Face hub; log in first (hf auth login)."""
    from compressor.job.pushing import push as upload

    print(upload(folder, name, private))
