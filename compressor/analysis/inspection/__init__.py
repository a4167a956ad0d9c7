"""What a folder holds and what loads it, from its headers; works on what any tool left."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from compressor.analysis.inspection.disagreements import differing_head, disagreements, ids_outside
from compressor.analysis.inspection.folder import Folder, open_folder
from compressor.analysis.inspection.loaders import answers
from compressor.analysis.inspection.loaders.answer import distinct
from compressor.config.amounts import in_runs
from compressor.config.layouts import NAS, PADDED, PER_LAYER, UNIFORM
from compressor.config.packing import Packing
from compressor.model.configs import read_as_given
from compressor.model.families.nas import is_nas
from compressor.model.widths import BlockWidths
from compressor.report.table import equal_runs
from compressor.writing.record import record_in


def inspect(path: Path) -> dict:
    """Family, widths of every block, sizes, layout, container, loadability and problems.

    `blocks` gives heads, KV heads and FFN channels by the shapes of the tensors (of a mixture the
    channels of an expert, and how many `experts` there are), or, for a type
    without a table (`family` null), the shapes themselves. `loads` is a list of `target`, `loads`
    (true, false, or null where it is not known here), `because` and `how` that is known. `problems`
    are sentences. `beside` is how many of the parameters are not of the language model, in a model of
    texts and images.
    `InputError` if there is no model in the folder at all.
    """
    with read_as_given():
        return described(open_folder(path))


def described(folder: Folder) -> dict:
    path, widths = folder.path, folder.widths()
    wrong, own_head = disagreements(folder, widths), differing_head(folder)
    others = [
        f"{name} is {number}, outside the vocabulary of {folder.config['vocab_size']:,}."
        for name, number in ids_outside(folder.config).items()
    ]
    if own_head:
        others.append(
            "The config ties the head to the embedding, and the files hold another: some loaders take "
            "the one, some the other. Set tie_word_embeddings to false, or take "
            f"{folder.family.head} away."
        )
    config, family = folder.config, folder.family
    embedding = folder.tensors.get(family.embedding) if family else None
    return {
        "path": str(path),
        "model_type": folder.written.get("model_type"),
        "family": family and family.model_type,
        "container": (folder.written.get("architectures") or [None])[0],
        "layout": layout(folder, widths),
        "parameters": folder.parameters,
        "beside": folder.beside,
        "bytes": sum(t.bytes for t in folder.stored.values()),
        "dtypes": folder.dtypes,
        "scheme": folder.packing and folder.packing.scheme,
        "group": folder.packing and folder.packing.group,
        "quantization": (config.get("quantization_config") or {}).get("quant_method"),
        "hidden_size": widths[0].hidden if widths else config.get("hidden_size"),
        "head_dim": folder.head_dim,
        "vocabulary": embedding.shape[0] if embedding else config.get("vocab_size"),
        "tied": family and family.head not in folder.tensors,
        "blocks": [block_row(i, block, widths) for i, block in enumerate(folder.blocks())],
        "dropped_blocks": record_in(path).get("dropped_blocks"),
        "loads": [asdict(answer) for answer in answers(folder, widths, wrong, own_head)],
        "problems": [*folder.problems, *wrong, *others],
    }


def layout(folder: Folder, widths: list[BlockWidths] | None) -> str | None:
    """`uniform` or `per-layer` by the widths, `nas` by the model type; `padded`, which widths do not
    show, by the record.
    """
    if widths is None:
        return None
    if is_nas(folder.written):
        return NAS
    if len(distinct(widths)) > 1:
        return PER_LAYER
    return PADDED if record_in(folder.path).get("layout") == PADDED else UNIFORM


def block_row(index: int, tensors: dict, widths: list[BlockWidths] | None) -> dict:
    row = {"block": index, "parameters": sum(t.numel for t in tensors.values())}
    if widths is None:
        matrices = {n: t.shape for n, t in tensors.items() if len(t.shape) > 1}
        return row | {"shapes": matrices}
    block = widths[index]
    return (
        row
        | {"heads": block.heads, "kv_heads": block.kv_heads, "ffn": block.ffn}
        | ({"experts": block.experts.count} if block.experts else {})
    )


def tables(result: dict) -> Iterator[Table | str]:
    """What a terminal shows."""
    yield summary(result)
    yield blocks(result)
    loads = Table(title="loads in", title_justify="left")
    for column in ("", "", "because", "by"):
        loads.add_column(column)
    for row in result["loads"]:
        answer = {True: "yes", False: "no", None: "unknown"}[row["loads"]]
        loads.add_row(row["target"], answer, row["because"], row["how"])
    yield loads
    yield from (f"Problem: {sentence}" for sentence in result["problems"])
    if result["problems"]:
        yield f"Mend what can be mended: compressor doctor {result['path']} --out FIXED"


def summary(result: dict) -> str:
    dtypes = ", ".join(f"{name} {count:,}" for name, count in result["dtypes"].items())
    tied = {True: "tied head", False: "own head", None: ""}[result["tied"]]
    dropped = in_runs(result["dropped_blocks"] or [])
    without = f" (without {dropped} of the source's)" if dropped else ""
    lines = [
        f"{result['path']}: type {result['model_type']}, container {result['container']}, layout "
        f"{result['layout'] or 'unknown'}",
        f"{result['parameters']:,} parameters, {result['bytes']:,} bytes ({dtypes or 'no tensors'})",
        f"{len(result['blocks'])} blocks{without}, hidden size {result['hidden_size']}, heads of "
        f"{result['head_dim']}, vocabulary {result['vocabulary']}, {tied}".rstrip(", "),
    ]
    if result["beside"]:
        lines.insert(
            2,
            f"the language model in it is a {result['family']}; {result['beside']:,} of the parameters "
            "are beside it, and are never cut",
        )
    if result["scheme"]:
        size = result["bytes"] / result["parameters"]
        lines.append(
            f"{Packing(result['scheme'], result['group']).words}, by {result['quantization']}: "
            f"{size:.3f} bytes a parameter, embedding and head included"
        )
    elif result["quantization"]:
        lines.append(f"quantised by {result['quantization']}: shapes are of packed weights")
    return "\n".join(lines)


def blocks(result: dict) -> Table:
    """A row for every run of equal blocks."""
    table = Table("block")
    if any("shapes" in row for row in result["blocks"]):
        table.add_column("matrices")
        for name, row in equal_runs(result["blocks"]):
            shapes = (f"{n} {' x '.join(map(str, s))}" for n, s in row["shapes"].items())
            table.add_row(name, "\n".join(shapes))
        return table
    columns = {"heads": "heads", "kv_heads": "KV heads", "ffn": "FFN"}
    if any("experts" in row for row in result["blocks"]):
        columns |= {"ffn": "FFN of an expert", "experts": "experts"}
    columns["parameters"] = "parameters"
    for column in columns.values():
        table.add_column(column, justify="right")
    for name, row in equal_runs(result["blocks"]):
        counts = (row[key] for key in columns)
        table.add_row(name, *(f"{count:,}" for count in counts))
    return table
