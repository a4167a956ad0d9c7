"""What is said of the blocks that were dropped."""


def depth_note(depth: dict | None) -> list[str]:
    """A sentence about how many blocks go, where that was decided."""
    losses = (depth or {}).get("losses")
    if not losses:
        return []
    best = min(losses, key=losses.__getitem__)
    each = ", ".join(f"{count}: {loss:.4f}" for count, loss in losses.items())
    return [
        f"{best} blocks are dropped: held-back loss in nats a token by the number of them, cut to the "
        f"target and repaired in one shot: {each}."
    ]
