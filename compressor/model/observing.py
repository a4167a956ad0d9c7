"""What modules of a block read and what they return, told while the block runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

Entering = Callable[[torch.Tensor], None]
Passed = Callable[[torch.Tensor, Any], None]  # a tensor or a tuple, as the module returns


@contextmanager
def observed(
    layer: nn.Module,
    entering: Mapping[str, Entering] | None = None,
    passed: Mapping[str, Passed] | None = None,
) -> Iterator[None]:
    """While open, `entering[name](x)` is called with what that module of `layer` is about to read, and
    `passed[name](x, output)` with that and what it returned. The layer itself has the name "".
    """
    with ExitStack() as handles:
        for name, take in (entering or {}).items():
            module = layer.get_submodule(name)
            hook = module.register_forward_pre_hook(lambda _, args, take=take: take(args[0]))
            handles.enter_context(hook)
        for name, take in (passed or {}).items():
            module = layer.get_submodule(name)
            hook = module.register_forward_hook(lambda _, args, out, take=take: take(args[0], out))
            handles.enter_context(hook)
        yield
