"""Cuts whose blocks have FFN widths of their own, in the form that vLLM serves (`families/nas.py`)."""

from compressor.config.layouts import NAS
from compressor.errors import InputError
from compressor.model.families import nas
from compressor.model.groups import counts
from compressor.model.per_layer import NAS_CODE, nas_auto_map
from compressor.writing.containers import defaults_of, patched_config
from compressor.writing.cuts import Cut
from compressor.writing.writer import Block


class Nas(Cut):
    """Blocks with equal attention and FFN widths of their own.

    `container` is the type of the Llama-shaped model that it is but for the widths.
    """

    layout = NAS
    code = NAS_CODE
    moved = True

    def settle(self) -> None:
        groups = sorted(counts(self.plan.widths(), "attention"))
        if len(groups) > 1:
            raise InputError(
                f"The plan leaves {groups[0]} to {groups[-1]} KV groups in a block, and in the nas "
                "layout all blocks have as many; make a plan with --layout nas, or use --layout "
                "per-layer."
            )

    def finished(self, index: int, whole: Block, changed: Block) -> Block:
        """Tensors that hold several of Llama's are taken apart."""
        source = self.source
        block = super().finished(index, whole, changed)
        for group, slices in source.family.groups().items():
            for part in slices:
                if names := source.family.joined.get(part.tensor):
                    joined = block.pop(source.block_name(index, part.tensor))
                    units = len(self.plan.blocks[index][group])
                    sizes = [units * source.channel_sizes[letter] for letter in part.owns.split()]
                    parts = zip(names, joined.split(sizes, part.axis), strict=True)
                    block |= {source.block_name(index, name): t.contiguous() for name, t in parts}
        return block

    def config(self) -> dict:
        source, widths = self.source, [width["ffn"] for width in self.plan.widths()]
        config = patched_config(source, self.units, self.container)
        config |= defaults_of(source, config, "llama")
        config.pop("sliding_window", None)  # `llama_like` has seen that there is none
        return config | {
            "model_type": nas.MODEL_TYPE,
            "architectures": [nas.ARCHITECTURE],
            "auto_map": nas_auto_map(),
            nas.KEY: nas.block_entries(widths, source.queries_per_group, source.hidden_size),
        }
