"""What a repair needs of a checkpoint and of a text."""

from compressor.config.repair import check_kind
from compressor.errors import InputError
from compressor.model.source import Source
from compressor.text.tokens import TokenSet


def check_text(repair: str, tokens: TokenSet) -> None:
    """Refuse a calibration text of which nothing can be held back."""
    if repair != "none" and len(tokens.sequences) < 2:
        raise InputError(
            f"--repair {repair} holds back a part of the calibration text and needs at least 2 "
            f"sequences, not {len(tokens.sequences)}; raise --samples, or use --repair none."
        )


def check_repair(repair: str, epochs: int | None, checkpoint: Source) -> None:
    """The same, and refuse biases to move where there are none."""
    check_kind(repair, epochs)
    if repair != "bias":
        return
    present = checkpoint.block_tensors(0)
    for group in checkpoint.family.groups():
        bias = checkpoint.family.output(group).replace(".weight", ".bias")
        if bias not in present:
            raise InputError(
                f"--repair bias folds what is lost into {bias}, which {checkpoint.label} does not "
                "have; use --repair ridge."
            )
