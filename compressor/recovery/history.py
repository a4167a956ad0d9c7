"""What came of a training, step by step."""

from dataclasses import dataclass, field


@dataclass
class History:
    """`losses[step]` is the mean loss of a step; `held_back` are pairs of a number of steps and the
    mean cross-entropy, after them, of the sequences held back. Both a counted token, in nats.
    """

    losses: list[float] = field(default_factory=list)
    held_back: list[list] = field(default_factory=list)
    stopped: str | None = None  # why, if not after the last step
