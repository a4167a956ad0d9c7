"""A mended folder as a source, and how its blocks are written: in the layouts that results have."""

from collections import Counter
from collections.abc import Iterable
from copy import copy

import torch

from compressor.analysis.doctor import tensors
from compressor.analysis.doctor.fault import Patient
from compressor.config.layouts import NAS, PADDED, PER_LAYER, UNIFORM
from compressor.errors import InputError
from compressor.model.configs import config_of, settings
from compressor.model.per_layer import KEY
from compressor.model.source import Source
from compressor.planning.plan import Plan
from compressor.text.tokenizer import open_tokenizer
from compressor.writing.cuts import Cut, Padded, layout_of, writer_of


class Mended(Source):
    """What a patient is, as a source. Blocks of their own widths have them in the config."""

    def __init__(self, patient: Patient):
        self.patient, self.path, self.label = patient, patient.path, str(patient.path)
        self.notes, self.coded, self.family = patient.notes, patient.coded, patient.family
        self.tensors, self.written_config = dict(patient.tensors), dict(patient.config)
        self.config = settings(self.family, self.written_config, self.model_config().to_dict())
        if reason := self.family.unlike(self.config):
            raise InputError(f"{self.path} cannot be mended: {reason}")
        self.settle_head()
        if not self.unequal:
            self.check_tensors()

    @property
    def unequal(self) -> bool:
        """Whether blocks have widths of their own."""
        return KEY in self.written_config

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        said = self.model_config().dtype
        counts: Counter[torch.dtype] = Counter()
        for entry in self.tensors.values():
            counts[entry.dtype] += entry.numel
        return said if said in counts else counts.most_common(1)[0][0]

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        return tensors.read(self.patient, list(names))

    def model_config(self):
        """Of blocks of their own widths, that of a model whose blocks are as wide as the widest."""
        known = {key: value for key, value in self.written_config.items() if key != KEY}
        return config_of(known, self.family)

    def of_own_widths(self) -> "Mended":
        """The same with the config of every block's own widths."""
        config, twin = self.written_config | self.family.per_layer_settings, copy(self)
        twin.model_config = lambda: config_of(config, self.family)  # type: ignore[method-assign]
        return twin

    def tokenizer(self):
        return open_tokenizer(self.patient.path, self.coded, self.vocabulary)


class Filled(Padded):
    """Zeros up to as many heads as the config says of the whole model, where its class refuses fewer."""

    def settle(self) -> None:
        super().settle()
        source, groups = self.source, self.units["attention"]
        if source.family.heads_divide_hidden and source.hidden_size % (
            groups * source.queries_per_group
        ):
            self.units["attention"] = max(source.kv_heads, groups)


def writer(source: Mended) -> Cut:
    """The writer of a mended folder: of equal blocks the uniform one; of others the first layout that
    holds them, its own before others. InputError with each one's reason.
    """
    plan, asked = Plan.whole(source), source.patient.asked.layout
    if layout_of(plan, PER_LAYER, source) == UNIFORM:
        return writer_of(source, plan, UNIFORM)
    reasons = []
    usual = (PER_LAYER, NAS) if KEY in source.patient.original else (NAS, PER_LAYER)
    for layout in (asked,) if asked else (*usual, PADDED):
        try:
            return Filled(source, plan) if layout == PADDED else writer_of(source, plan, layout)
        except InputError as error:
            reasons.append(str(error))
    raise InputError(
        f"{source.path} cannot be mended: its blocks have widths of their own. {' '.join(reasons)}"
    )
