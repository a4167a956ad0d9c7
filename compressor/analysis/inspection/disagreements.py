"""Where a folder contradicts itself: its config, its tensors, its tokenizer's numbers."""

from compressor.analysis.inspection.folder import Folder
from compressor.model.per_layer import in_every_block
from compressor.model.tensors import equal_rows
from compressor.model.widths import BlockWidths

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def disagreements(folder: Folder, widths: list[BlockWidths] | None) -> list[str]:
    """Where config and tensors differ. The tensors are believed: they are what is there."""
    family, config = folder.family, folder.config
    if family is None or not folder.tensors:
        return []
    blocks = len(folder.blocks())
    said = {"num_hidden_layers": ([config.get("num_hidden_layers")], [blocks])}
    embedding = folder.tensors.get(family.embedding)
    if embedding and len(embedding.shape) == 2:
        said["vocab_size"] = [config.get("vocab_size")], [embedding.shape[0]]
        said["hidden_size"] = [config.get("hidden_size")], [embedding.shape[1]]
    notes = []
    if widths:
        tables = [family.in_block(config, block) for block in range(blocks)]

        def of_units(group: str, told: list, there: list) -> tuple[list, list]:
            """Of the blocks whose group is of the kind that the config counts."""
            mine = [i for i, table in enumerate(tables) if group not in table.whole]
            return [told[i] for i in mine], [there[i] for i in mine]

        channels, heads, groups = (
            in_every_block(config, key, blocks)
            for key in (family.ffn_width_key, family.heads_key, family.kv_heads_key)
        )
        said[family.ffn_width_key] = of_units("ffn", channels, [w.units for w in widths])
        uneven = {n for w in widths for n in (w.query, w.key_value) if n % w.head_dim}
        if uneven:
            source = (
                "head_dim" if config.get("head_dim") else "hidden_size / heads, without head_dim"
            )
            notes.append(
                f"{min(uneven)} channels of attention are not whole heads of {folder.head_dim} "
                f"(the config's {source}); the tensors are believed."
            )
        else:
            grouped = [kv_heads or count for kv_heads, count in zip(groups, heads, strict=True)]
            said[family.heads_key] = of_units("attention", heads, [w.heads for w in widths])
            said[family.kv_heads_key] = of_units("attention", grouped, [w.kv_heads for w in widths])
    for key, (told, there) in said.items():
        if told != there:
            where = next(i for i, (a, b) in enumerate(zip(told, there, strict=True)) if a != b)
            first = f" (block {where} first)" if len({*told}) > 1 else ""
            notes.append(
                f"The config says {key} {span(told)}, the tensors {span(there)}{first}; the tensors "
                "are believed."
            )
    if family.head not in folder.tensors and not config.get("tie_word_embeddings"):
        notes.append(f"{family.head} is missing, and the config does not tie it to the embedding.")
    return notes


def span(values: list) -> str:
    """`48`, or `20 to 48`."""
    if None in values:
        return "None"
    return " to ".join(f"{n:,}" for n in sorted({min(values), max(values)}))


def ids_outside(config: dict) -> dict[str, int]:
    """The ids of special tokens that no row of the embedding has, by the setting's name.

    Negative ones stand for none, as -1 does in old configs.
    """
    vocabulary, outside = config.get("vocab_size"), {}
    for name in IDS:
        value = config.get(name)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and isinstance(vocabulary, int) and number >= vocabulary:
                outside[name] = number
    return outside


def differing_head(folder: Folder) -> bool:
    """Whether the files hold a head of their own that the config ties to the embedding."""
    family, stored = folder.family, folder.stored
    if family is None or not folder.config.get("tie_word_embeddings"):
        return False
    if not {family.head, family.embedding} <= stored.keys():
        return False
    return not equal_rows(stored[family.head], stored[family.embedding])
