"""Logits in float32, a few rows of a weight being widened at a time."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import torch

from compressor.model.memory import drop_pages
from compressor.model.modules import replaced_forward

ROWS = 4096

# The weight of a linear layer, so many rows at a time.
RowsOf = Callable[[torch.nn.Linear, int], Iterator[torch.Tensor]]


def stored_rows(module: torch.nn.Linear, count: int) -> Iterator[torch.Tensor]:
    """As they are stored."""
    yield from module.weight.split(count)


@torch.no_grad()
def logits(
    model: torch.nn.Module, ids: torch.Tensor, rows_of: RowsOf = stored_rows
) -> torch.Tensor:
    """float32 logits [tokens, vocabulary] of one prompt [1, tokens], by the model's own forward."""
    wide = partial(wide_linear, rows_of=rows_of)
    with ExitStack() as undone:
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                undone.enter_context(replaced_forward([module], wide))
            elif isinstance(module, torch.nn.Embedding):  # a look-up is exact in any dtype
                hook = module.register_forward_hook(lambda m, args, out: out.float())
                undone.enter_context(hook)
            elif next(module.parameters(recurse=False), None) is not None:
                undone.enter_context(module.register_forward_pre_hook(_widen))
                undone.enter_context(module.register_forward_hook(_restore))
        return model(input_ids=ids, use_cache=False).logits[0].float()


def wide_linear(
    module: torch.nn.Linear, x: torch.Tensor, rows_of: RowsOf = stored_rows
) -> torch.Tensor:
    """x W^T + b in float32, widening `ROWS` rows of the weight at a time."""
    parts = []
    for rows in rows_of(module, ROWS):
        parts.append(torch.nn.functional.linear(x.float(), rows.float()))
        drop_pages(rows)
    result = torch.cat(parts, -1)
    return result if module.bias is None else result + module.bias.float()


def _widen(module, args) -> None:
    module.narrow = {name: p.data for name, p in module.named_parameters(recurse=False)}
    for name, parameter in module.named_parameters(recurse=False):
        parameter.data = module.narrow[name].float()


def _restore(module, args, output) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        parameter.data = module.narrow[name]
    del module.narrow
