"""The stage that mends what other tools left."""

import json
from pathlib import Path
from typing import Annotated

from typer import Option

from compressor.cli import flags
from compressor.cli.arguments import Panels, offers
from compressor.config.job import JobConfig
from compressor.config.runtime import Runtime

OFFERED: Panels = {flags.OUTPUT: {Runtime: ("verify", "overwrite")}}
ANSWERS = "Where it can mean two things"


@offers(OFFERED)
def doctor(
    folder: Annotated[
        Path,
        flags.folder_argument(
            "Folder that some tool left, or ORG/NAME on the hub; it is not changed."
        ),
    ],
    out: Annotated[Path, Option(help="Folder to make, if anything is wrong.")],
    head_dim: Annotated[
        int | None, Option(help="Channels of a head.", min=1, rich_help_panel=ANSWERS)
    ] = None,
    merged: Annotated[
        bool,
        Option(
            "--merged",
            help="The adapter beside the weights is in them already.",
            rich_help_panel=ANSWERS,
        ),
    ] = False,
    tied: Annotated[
        bool,
        Option(
            "--tied", help="The head that is missing is the embedding.", rich_help_panel=ANSWERS
        ),
    ] = False,
    rope: Annotated[
        str | None,
        Option(
            help="Which rotary settings are right: rope_scaling (and rope_theta) or rope_parameters.",
            rich_help_panel=ANSWERS,
        ),
    ] = None,
    layout: Annotated[
        str | None,
        Option(
            help="Of blocks of their own widths: nas, per-layer or padded; by default the first of "
            "these that holds them.",
            rich_help_panel=flags.OUTPUT,
        ),
    ] = None,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
    *,
    options: dict,
) -> None:
    """Mend a folder whose config does not fit its tensors, or whose files loaders stumble over."""
    from compressor.analysis.doctor.fault import Asked
    from compressor.job.doctor import mend
    from compressor.job.progress import Lines

    runtime = JobConfig(folder, out).with_options("runtime", **options).runtime
    asked = Asked(head_dim, merged, tied, rope, layout)
    result = mend(folder, out, asked, runtime, Lines(quiet or as_json))
    if as_json:
        print(json.dumps(result, indent=1))
        return
    for each in result["found"]:
        print(f"{each['seen']} {each['done']}")
    if result["out"] is None:
        print(f"Nothing is wrong with {folder} that would be mended; nothing is written.")
        return
    print(said(result))


def said(result: dict) -> str:
    """What was written, and how far it is proven."""
    report = result["report"] or {}
    proof = "not verified"
    if report:
        difference = report.get("logits_difference")
        near = "its logits were compared with nothing"
        if difference is not None:
            near = f"logits within {difference:.1e} of those of the tensors"
        proof = f"verified: loads, writes text, {near}"
    wrote = (
        f"{result['out']}: {result['parameters']:,} parameters as {result['model_type']}, layout "
        f"{result['layout']}, {proof}"
    )
    return "\n".join([wrote, *result["notes"]])
