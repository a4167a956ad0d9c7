"""`compressor sweep FILE.yaml DEST`: many results of one source, and one table."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from compressor.cli import flags
from compressor.config.hub_names import called
from compressor.config.picking import parse_rule
from compressor.config.sweep import check_measured, read_sweep
from compressor.errors import QualityError
from compressor.job.console import console


def sweep(
    file: Annotated[
        Path, typer.Argument(help="YAML file: source, options, lists of which each value is tried.")
    ],
    dest: Annotated[Path, typer.Argument(help="Folder to make: a folder a result, and the table.")],
    pick: Annotated[
        str | None,
        Option(
            help="Publish the smallest result of which this holds as DEST/picked: 'perplexity <= 1.1x', "
            "'kl <= 0.05', 'agreement >= 90%'."
        ),
    ] = None,
    resume: Annotated[
        bool, Option("--resume", help="Go on: what is finished is not done again.")
    ] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Make every result anew.")] = False,
    as_json: flags.Json = False,
) -> None:
    """Try options with each other, sharing what can be shared, and show all results in one table."""
    rule = parse_rule(pick) if pick is not None else None
    from compressor.job.sweep.beginning import begin

    asked = read_sweep(file)
    if rule is not None:
        check_measured(asked)
    begun = begin(asked, dest, resume, overwrite)  # from here on torch is imported
    from compressor.job.hub import at_hand
    from compressor.job.progress import Lines
    from compressor.job.sweep.picking import picked, publish_picked
    from compressor.job.sweep.running import check_rows, run_sweep, show
    from compressor.report.swept import notes, table
    from compressor.writing.locking import locked

    begun = replace(begun, sweep=replace(begun.sweep, source=at_hand(begun.sweep.source)))
    with locked(dest):
        run_sweep(begun, Lines(as_json))
        said = [*notes(begun.rows), *show(begun)]
        if begun.dropped:
            said.append(
                f"{', '.join(begun.dropped)} in {dest} are of options that {file} no longer has, and "
                "stand in no table; remove them, or write the options again."
            )
        chosen, unmet = None, None
        if rule is not None:
            try:
                chosen = picked(begun.rows, rule)
            except QualityError as error:
                unmet = error
            publish_picked(dest, chosen)
    if not as_json:
        console().print(table(begun.rows, called(begun.sweep.source)))
        for note in said:
            console().print(note)
        if chosen is not None:
            console().print(f"{dest / 'picked'} is {chosen.name}.")
    check_rows(begun)
    if unmet is not None:
        raise unmet
    if as_json:
        rows = [row.told() for row in begun.rows]
        print(json.dumps({"rows": rows, "picked": chosen and chosen.name}, indent=1))
