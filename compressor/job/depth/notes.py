"""What is said of the blocks that were dropped."""


def depth_note(depth: dict | None) -> list[str]:
    """A sentence about how many blocks go, where that was decided."""
    losses = (depth or {}).get("losses")
    if not losses:
        return []
    best = min(losses, key=losses.__getitem__)
    each = ", ".join(f"{count}: {loss:.4f}" for count, loss in losses.items())
    return [
        f"Dropping {best} block{'s' * (best != '1')} was decided by the held-back loss of the model "
        f"cut to the target and repaired in one shot, in nats a token by the number of blocks: {each}."
    ]
