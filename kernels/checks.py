"""What every op checks before native code sees an address: sentences with op, argument and value."""

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensor(
    op: str,
    name: str,
    tensor: torch.Tensor,
    dtypes: tuple[torch.dtype, ...] = FLOATS,
    shape: tuple[int | None, ...] | None = None,
    device: torch.device | None = None,
) -> None:
    """TypeError or ValueError unless `tensor` is as said; None in `shape` is any size."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, not {type(tensor).__name__}.")
    if tensor.dtype not in dtypes:
        known = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{op}: {name} is {tensor.dtype}; it must be one of {known}.")
    if tensor.layout != torch.strided:
        raise TypeError(f"{op}: {name} is {tensor.layout}; it must be a plain (strided) tensor.")
    if tensor.is_quantized or tensor.is_nested:
        kind = "quantized" if tensor.is_quantized else "nested"
        raise TypeError(f"{op}: {name} is a {kind} tensor; it must be a plain one.")
    if device is not None and tensor.device != device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, but other tensors are on {device}.")
    if shape is not None and not fits(tensor.shape, shape):
        wanted = "[" + ", ".join("any" if s is None else str(s) for s in shape) + "]"
        raise ValueError(f"{op}: {name} has shape {list(tensor.shape)}; it must be {wanted}.")


def fits(found: torch.Size, wanted: tuple[int | None, ...]) -> bool:
    if found == wanted:
        return True
    return len(found) == len(wanted) and all(
        want is None or want == size for want, size in zip(wanted, found, strict=True)
    )


def check_choice(op: str, name: str, value, choices) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"{op}: {name} is {value!r}; it must be one of {known}.")
