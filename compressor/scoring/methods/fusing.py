"""The end of HyWIA's scores: what was observed of all blocks is fused, at rates that may be fitted to
measured loss changes (`calibrated`).
"""

from dataclasses import replace

import torch

from compressor.model.passes import Passing
from compressor.scoring.methods import Calibration, Combined
from compressor.scoring.methods.hywia import PARTS, fitted_share, fuse, normalised
from compressor.scoring.probing import loss_changes_in_parts, sample_probes, spearman
from compressor.scoring.scores import Blocks
from compressor.text.tokens import TokenSet

PROBES, PROBE_SEQUENCES = 128, 8  # the work of a few forwards of 128 calibration sequences


def combine(blocks: Blocks, mode: str, calibration: Calibration) -> Combined:
    """The fused scores of all blocks, in any mode of `hywia` and of the methods of one part alone."""
    shares: dict[str, float] = {}
    notes: list[str] = []
    if mode == "attention" and len(calibration.tokens.sequences) == 1:
        mode = "fixed:0.5"
        notes.append(
            "One calibration sequence has no variance to attend to, so coarse and fine importance "
            "were weighed equally (fixed:0.5); give more --samples."
        )
    if mode == "calibrated":
        shares, notes = calibrated_shares(blocks, calibration)
    return replace(fuse(blocks, mode, shares), notes=notes)


def calibrated_shares(
    blocks: Blocks, calibration: Calibration
) -> tuple[dict[str, float], list[str]]:
    """The coarse share of each group by `fitted_share` to measured loss changes, and how well
    coarse, fine and fused rank them (Spearman), in sentences.

    The loss changes of single units are far below the rounding of half precision, so they are
    measured in float32, over a few calibration sequences and all blocks.
    """
    stream, tokens = calibration.stream, calibration.tokens
    kept = Passing(saved=calibration.saved and calibration.saved / "probes")
    checkpoint = stream.checkpoint
    probes = sample_probes(checkpoint.block_units, PROBES, calibration.seed)
    texts = TokenSet(tokens.sequences[:: max(1, len(tokens.sequences) // PROBE_SEQUENCES)])
    wide = stream.in_float32()
    blocks = normalised(blocks)
    changes = loss_changes_in_parts(wide, texts.batches(stream.batch_tokens), probes, kept)
    shares, said = {}, []
    for group in checkpoint.units:
        mine = [i for i, probe in enumerate(probes) if probe[1] == group]
        places = [(probes[i][0], probes[i][2]) for i in mine]
        values = torch.stack([blocks[b][group][: len(PARTS), u] for b, u in places], 1)
        true = changes[mine]
        shares[group] = share = fitted_share(values, true)
        fused = share * values[0] + (1 - share) * values[1]
        scores = {"coarse": values[0], "fine": values[1], "fused": fused}
        ranks = ", ".join(f"{name} {spearman(v, true):.2f}" for name, v in scores.items())
        said.append(
            f"Calibrated on {len(mine)} masked {group} units: {share:.2f} of the score is coarse; "
            f"Spearman correlation with the loss change: {ranks}."
        )
    return shares, said
