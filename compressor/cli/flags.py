"""Arguments and options that several commands share and no config has."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from compressor.config.hub_names import on_the_hub


def here(source: str) -> Path:
    """A folder, which is downloaded where a name on the hub is given."""
    if not on_the_hub(source):
        return Path(source)
    from compressor.job.hub import at_hand

    return at_hand(source)


def folder_argument(help: str):
    """A FOLDER, or the name of one on the hub."""
    return Argument(help=help, parser=here, metavar="FOLDER")


SIZE = "How small"
OUTPUT = "Output"
JSON, DEBUG = "--json", "--debug"  # which a command's failure looks for, too

WHAT = (
    "Checkpoint folder (config, safetensors, tokenizer), or ORG/NAME or ORG/NAME@REVISION on the hub; "
    "hf://ORG/NAME keeps one of its shards on this disk at a time."
)
Source = Annotated[Path, Argument(help=WHAT)]
Here = Annotated[Path, Argument(help=WHAT, parser=here, metavar="SOURCE")]
Dest = Annotated[Path, Argument(help="Folder to make; it must not exist.")]
Out = Annotated[Path, Option(help="File to write.")]

Keep = Annotated[
    list[float] | None,
    Option(
        help="Share of all parameters that stay, such as 0.7; several: one folder each.",
        rich_help_panel=SIZE,
    ),
]
KeepBlocks = Annotated[
    list[float] | None,
    Option(help="Share of the weights of the blocks' projections that stay.", rich_help_panel=SIZE),
]
Target = Annotated[
    str | None,
    Option(help="Parameters (5.4B) or bytes (11GB) to reach.", rich_help_panel=SIZE),
]
Budget = Annotated[
    str,
    Option(
        help="What --keep and --keep-blocks are shares of: params, flops, or a JSON file of costs "
        "(`compressor estimate --costs` writes one).",
        rich_help_panel=SIZE,
    ),
]
Json = Annotated[
    bool,
    Option(JSON, help="Print the result as JSON, or what went wrong.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[bool, Option("--quiet", help="No progress lines.", rich_help_panel=OUTPUT)]
Debug = Annotated[
    bool, Option(DEBUG, help="Show the traceback of a failure.", rich_help_panel=OUTPUT)
]
