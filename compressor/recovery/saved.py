"""A training as it is saved: one file, complete whenever it exists, whoever held which part of it."""

import json
from contextlib import closing
from pathlib import Path

import torch
from safetensors import safe_open

from compressor.recovery.history import History
from compressor.recovery.sharding import shared_like, whole
from compressor.writing.shards import ShardFile, flush_one

MOMENTS = ("exp_avg", "exp_avg_sq")


def save(
    path: Path, parameters: dict, optimizer: torch.optim.Optimizer, history: History, writes: bool
) -> None:
    """All that the next step depends on. Of several processes one `writes`, and all have to call it."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        moments = optimizer.state[parameter]
        tensors |= {name: parameter} | {f"{name} {m}": moments[m] for m in MOMENTS}
    if not writes:
        for tensor in tensors.values():
            whole(tensor)
        return
    about = json.dumps({"losses": history.losses, "held_back": history.held_back})
    unfinished = path.with_name(path.name + ".unfinished")
    sizes = {n: torch.empty(t.shape, dtype=t.dtype, device="meta") for n, t in tensors.items()}
    with closing(ShardFile(unfinished, sizes, {"history": about})) as file:
        for name, tensor in tensors.items():
            file.put(name, whole(tensor).cpu())
    flush_one(unfinished)
    unfinished.replace(path)


@torch.no_grad()
def restore(path: Path, parameters: dict, optimizer: torch.optim.Optimizer) -> History | None:
    """Put a saved state in place; its history, or None where nothing was saved."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as handle:
        about = json.loads(handle.metadata()["history"])
        for name, parameter in parameters.items():
            parameter.copy_(shared_like(handle.get_tensor(name), parameter))
            steps = torch.tensor(float(len(about["losses"])), device=parameter.device)
            optimizer.state[parameter] = {"step": steps}
            for moment in MOMENTS:
                value = shared_like(handle.get_tensor(f"{name} {moment}"), parameter)
                optimizer.state[parameter][moment] = value
    return History(about["losses"], about["held_back"])
