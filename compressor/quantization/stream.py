"""The pass that quantises a checkpoint: block after block, one in memory.

A second, float32 stream carries prompts through the quantised blocks: what they compute is what the
written folder has to compute.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from compressor.config.packing import W4A16, Packing
from compressor.config.seeding import of_block
from compressor.errors import InputError
from compressor.model.activations import Activations
from compressor.model.block import Block
from compressor.model.checkpoint import Checkpoint
from compressor.model.digest import digest
from compressor.model.finite import check_block
from compressor.model.layers import passed
from compressor.model.memory import trim_heap
from compressor.model.modules import loaded
from compressor.model.saved_blocks import finished_block, keep_block, told_of_block
from compressor.model.stream import BlockStream
from compressor.quantization.clipping import learn
from compressor.quantization.floats import scales_of
from compressor.quantization.scheme import scales, stored_scales
from compressor.repairing.streaming import HELD_BACK
from compressor.solvers.fixed_order import total
from compressor.text.tokens import held_back
from compressor.writing.packing import SCALE, packed, unpacked


@dataclass(frozen=True)
class Calibration:
    """What clipping is learned on: the dense checkpoint's stream, and token ids [tokens].

    Of the sequences one in `HELD_BACK` judges, and at least one; InputError for fewer than two.
    """

    stream: BlockStream
    sequences: Sequence[torch.Tensor]
    seed: int = 0

    def __post_init__(self):
        if len(self.sequences) < 2:
            raise InputError(
                "Learning to clip holds back a part of the calibration text and needs at least 2 "
                f"sequences, not {len(self.sequences)}; raise --samples, or, in Python, "
                "quantize_clip='none'."
            )

    @property
    def held(self) -> list[int]:
        return held_back(len(self.sequences), HELD_BACK)

    @property
    def fitted(self) -> list[int]:
        held = self.held
        return [i for i in range(len(self.sequences)) if i not in held]


class Quantizing:
    """One quantisation of one dense checkpoint: iterate over `blocks()`, then read `record`, `logits`.

    prompts: token ids [tokens]. calibration: learn to clip, else round to nearest. scales: those of
    a block, by its number, where they are known already. saved: a folder where what was learned of
    finished blocks is kept, and taken from if it is there.

    record[block]: the `sha256` of the packed tensors, the relative squared `error` of the weights, by
    projection, and with calibration the `held_back` losses of rounding to nearest and after every epoch.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        packing: Packing,
        prompts: Sequence[torch.Tensor] = (),
        calibration: Calibration | None = None,
        scales: Callable[[int], dict[str, torch.Tensor]] | None = None,
        saved: Path | None = None,
    ):
        check_columns(checkpoint, packing)
        self.checkpoint, self.packing = checkpoint, packing
        self.calibration, self.scales, self.saved = calibration, scales, saved
        self.exact = BlockStream(checkpoint, dtype=torch.float32)
        self.prompts = [ids[None] for ids in prompts]
        self.record: list[dict] = []

    @torch.no_grad()
    def blocks(self) -> Iterator[dict[str, torch.Tensor]]:
        """Of every block in order all tensors to store, by their names inside it."""
        checkpoint, exact = self.checkpoint, self.exact
        self.states, calls = exact.record(self.prompts)
        path = self.calibration and Paths(self.calibration, self.packing.group, self.saved)
        matrices = checkpoint.family.projections()
        for index in range(checkpoint.blocks):
            weights = checkpoint.read_block(index)
            check_block(checkpoint, index, weights)
            dense = {name: weights[name] for name in matrices}
            entry: dict = {}
            gammas: dict[str, torch.Tensor] = {}
            if path:
                gammas, entry["held_back"] = path.learned(index, weights)
            stored: dict[str, torch.Tensor] = {}
            for name, steps in self.steps(index, dense, gammas).items():
                parts = packed(name, dense[name], steps, self.packing)
                ends = {key.removeprefix(name): part for key, part in parts.items()}
                shape, dtype = dense[name].shape, dense[name].dtype
                weights[name] = unpacked(ends, shape, self.packing).to(dtype)
                stored |= parts
            if path:
                path.advance(weights)
            with loaded(exact.layers[index], exact.cast(weights)) as layer:
                self.states = passed(exact, layer, self.states, [call[index] for call in calls])
            errors = {name: relative(weights[name], weight) for name, weight in dense.items()}
            self.record.append({"sha256": digest(stored), "error": errors} | entry)
            yield stored | {n: t for n, t in weights.items() if n not in errors}
            trim_heap()

    def steps(self, index: int, weights: dict, gammas: dict) -> dict[str, dict[str, torch.Tensor]]:
        """The scales of a block's weights, by the ends of the names that they are stored by."""
        if self.packing.scheme != W4A16:
            return scales_of(weights, self.checkpoint.family.readers(), self.packing)
        known = self.scales(index) if self.scales else {}
        return {
            n: {SCALE: known[n] if known else clipped(w, self.packing.group, gammas.get(n))}
            for n, w in weights.items()
        }

    def logits(self) -> list[torch.Tensor]:
        """float32 [tokens, vocabulary] of every prompt, when all blocks are done."""
        return [logits[0] for logits in self.exact.logits(self.prompts, self.states)]


class Paths:
    """The calibration text on its way through the blocks, dense and quantised."""

    def __init__(self, calibration: Calibration, group: int, saved: Path | None):
        self.calibration, self.group, self.stream = calibration, group, calibration.stream
        self.saved = saved
        self.quantized, self.calls = self.stream.record([s[None] for s in calibration.sequences])
        self.dense = self.quantized

    def learned(self, index: int, weights: dict[str, torch.Tensor]) -> tuple[dict, list[float]]:
        """Gammas of a block with these weights, as they are stored, and its held-back losses; those
        that were kept, if it is finished.

        The dense path goes on behind the block.
        """
        stream, calibration = self.stream, self.calibration
        gammas = finished_block(self.saved, index)
        readers = stream.checkpoint.family.readers()
        with loaded(stream.layers[index], stream.cast(weights)) as layer:
            calls = [call[index] for call in self.calls]
            self.block = Block(
                index, layer, self.quantized, calls, len(calls), stream.device, readers
            )
            following = Activations(stream.place)
            for i in range(len(calls)):
                following.put(i, self.block.run(i, inputs=self.dense))
            if self.dense is not self.quantized:
                self.dense.discard()
            self.dense = following
            if gammas is not None:
                return gammas, told_of_block(self.saved, index)
            gammas, losses = learn(
                self.block,
                following,
                calibration.fitted,
                calibration.held,
                self.group,
                stream.checkpoint.dtype,
                of_block(calibration.seed, index),
            )
        gammas = {name: gamma.cpu() for name, gamma in gammas.items()}
        keep_block(self.saved, index, gammas, losses)
        return gammas, losses

    def advance(self, weights: dict[str, torch.Tensor]) -> None:
        """The quantised path goes on behind the last block, which now has these weights."""
        stream, block = self.stream, self.block
        following = Activations(stream.place)
        with loaded(stream.layers[block.index], stream.cast(weights)):
            for i in range(block.count):
                following.put(i, block.run(i))
        self.quantized.discard()
        self.quantized = following


def clipped(weight: torch.Tensor, group: int, gamma: torch.Tensor | None) -> torch.Tensor:
    return stored_scales(scales(weight, group, gamma), weight.dtype)


def check_columns(checkpoint: Checkpoint, packing: Packing) -> None:
    """Refuse input channels that are not whole groups, by the tensor's name."""
    group, named = packing.columns, " (quantize_group)" if packing.scheme == W4A16 else ""
    names = [checkpoint.block_name(0, name) for name in checkpoint.family.projections()]
    widths = {name: checkpoint.tensors[name].shape[1] for name in names}
    for name, columns in widths.items():
        if columns % group:
            raise InputError(
                f"{name} has {columns} input channels, which are not whole groups of {group}{named}. "
                f"{remedy(checkpoint, packing, math.gcd(*widths.values()))}"
            )


def remedy(checkpoint: Checkpoint, packing: Packing, common: int) -> str:
    """That groups of `common` have every width of the model, and whether a cut can make this one fit."""
    group, advice = packing.columns, f"{packing.scheme} takes no others"
    if packing.scheme == W4A16:
        advice = f"Groups of {common}, or of a divisor of it, fit all of this model's widths"
    width = checkpoint.units["ffn"]
    if checkpoint.hidden_size % group == 0 and group <= width:
        advice += (
            f"; or cut: with --keep or --keep-blocks, FFN widths become multiples of {group}, at "
            f"most {width // group * group} of {width}"
        )
    return advice + "."


def relative(changed: torch.Tensor, weight: torch.Tensor) -> float:
    """||W^ - W||^2 / ||W||^2, 0 for a weight of zeros."""
    weight = weight.float()
    energy = total(weight.square())
    return (total((changed.float() - weight).square()) / energy).item() if energy else 0.0
