"""The digest of tensors, by which what was made is known again."""

import hashlib

import torch


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of the bytes of tensors, in the order of their names."""
    hasher = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        data = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()
        hasher.update(data)  # type: ignore[arg-type]  # a Buffer to the stubs from Python 3.12 on
    return hasher.hexdigest()
