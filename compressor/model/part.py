"""What a part of a source has of the whole: the base of sources that are read through."""

import torch

from compressor.model.configs import config_of, settings
from compressor.model.source import Source


class Part(Source):
    """`whole` without something, read through; of it shares are counted, toward it is repaired.

    written: what config.json says of the part; `tensors` is for its kind to set.
    """

    def __init__(self, whole: Source, written: dict):
        self._whole = whole
        self.family, self.dtype, self.packing = whole.family, whole.dtype, whole.packing
        self.label, self.path, self.coded = whole.label, whole.path, whole.coded
        self.notes, self.fingerprint = whole.notes, whole.fingerprint
        self.header_bytes, self.side = whole.header_bytes, whole.side
        self.dequantised, self.stacks = whole.dequantised, whole.stacks
        self.written_config = written
        self.config = settings(self.family, written, self.model_config().to_dict())

    @property
    def whole(self) -> Source:
        return self._whole

    def stored_name(self, name: str) -> str:
        return self.whole.stored_name(name)

    def read_side(self, name: str) -> torch.Tensor:
        return self.whole.read_side(name)

    def whole_config(self, config: dict) -> dict:
        return self.whole.whole_config(config)

    def will_need_block(self, block: int) -> None:
        self.whole.will_need_block(self.numbers[block])

    def model_config(self):
        return config_of(self.written_config, self.family)

    def tokenizer(self):
        return self.whole.tokenizer()
