"""What other libraries' data loaders yield, as token ids."""

from collections.abc import Iterable, Mapping

import torch

from compressor.errors import InputError


def rows(batches: Iterable) -> list[torch.Tensor]:
    """Every sequence of every batch, int64 on the CPU, without its padding.

    A batch is token ids [sequences, tokens], or a mapping with `input_ids` of that form and perhaps
    `attention_mask`, 1 where a token is no padding. InputError for another one.
    """
    found: list[torch.Tensor] = []
    for batch in batches:
        named = batch if isinstance(batch, Mapping) else {"input_ids": batch}
        ids = named.get("input_ids")
        if not isinstance(ids, torch.Tensor) or ids.dim() != 2:
            raise InputError(
                "A batch is token ids [sequences, tokens], or has them as `input_ids`, and here is a "
                f"{type(batch).__name__} without."
            )
        mask = named.get("attention_mask")
        real = torch.ones_like(ids) if mask is None else mask
        found += [row[kept] for row, kept in zip(ids.cpu(), real.cpu().bool(), strict=True)]
    return found
