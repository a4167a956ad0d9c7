"""The loss of a batch and its gradient, a few positions' logits at a time.

The gradient goes back through the head at once, chunk by chunk, and no tensor of tokens x vocabulary is
ever built; positions whose next token does not count never see the head.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from compressor.recovery.data import IGNORED, Example

# What models make of what their heads give, by the setting that says how far.
OF_LOGITS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "final_logit_softcapping": lambda logits, cap: torch.tanh(logits / cap) * cap,  # Gemma
    "logit_scale": lambda logits, scale: logits * scale,  # Cohere
    "logits_scaling": lambda logits, scale: logits / scale,  # Granite
}
LOGITS = 1 << 25  # numbers at a time: 128 MB in float32
STATES = "gathered_states"  # what a sharded model has in place of its base model's forward


@dataclass(frozen=True)
class Soft:
    """A teacher's distribution at every counted position: its likeliest tokens [positions, k], their
    log-probabilities and, last, that of all the others together: [positions, k + 1]. Without a last
    column (k is the vocabulary) [positions, k].
    """

    tokens: torch.Tensor
    logs: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, top: int) -> "Soft":
        """From logits [positions, vocabulary]."""
        logs = widened(logits).log_softmax(-1)
        if top >= logs.shape[-1]:
            tokens = torch.arange(logs.shape[-1], dtype=torch.int32, device=logs.device)
            return cls(tokens.expand(len(logs), -1).contiguous(), logs)
        values, tokens = logs.topk(top, -1)
        rest = logs.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
        return cls(tokens.int(), torch.cat((values, rest), -1))

    def __getitem__(self, rows: slice) -> "Soft":
        return Soft(self.tokens[rows], self.logs[rows])

    def to(self, device: torch.device | str) -> "Soft":
        return Soft(self.tokens.to(device), self.logs.to(device))


def widened(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def divergence(logits: torch.Tensor, soft: Soft) -> torch.Tensor:
    """Sum over positions of KL(teacher || softmax(logits)), in nats, of logits [positions, vocabulary].

    The tokens that the teacher's distribution does not name count as one: the sum is then a lower
    bound of the divergence, and equal to it where the two agree on those tokens' proportions.
    """
    tokens = soft.tokens.long()
    logs = logits.log_softmax(-1)
    ours = logs.gather(-1, tokens)
    if soft.logs.shape[-1] > tokens.shape[-1]:
        rest = logs.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)
        ours = torch.cat((ours, rest), -1)
    return nn.functional.kl_div(ours, soft.logs, reduction="sum", log_target=True)


def padded(examples: Sequence[Example], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [examples, tokens], padded on the right, and labels of the same shape."""
    pad = nn.utils.rnn.pad_sequence
    ids = pad([e.ids for e in examples], batch_first=True)
    labels = pad([e.labels for e in examples], batch_first=True, padding_value=IGNORED)
    return ids.to(device), labels.to(device)


def head_logits(model: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Logits [positions, vocabulary] of what enters the head, as the model's forward has them."""
    logits = model.get_output_embeddings()(states)
    for setting, change in OF_LOGITS.items():
        if (value := getattr(model.config, setting, None)) is not None:
            logits = change(logits, value)
    return widened(logits)


def last_states(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """What enters the head [examples, tokens, hidden], of ids [examples, tokens]."""
    if hasattr(model, STATES):
        return getattr(model, STATES)(ids)
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def counted_states(
    model: nn.Module, ids: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the head [positions, hidden] where the next token counts, and that token."""
    final = last_states(model, ids)
    following = labels[:, 1:]
    counts = following != IGNORED
    return final[:, :-1][counts], following[counts]


def chunks(states: torch.Tensor, vocabulary: int) -> Iterator[slice]:
    rows = max(1, LOGITS // vocabulary)
    return (slice(begin, begin + rows) for begin in range(0, len(states), rows))


def differentiate(
    model: nn.Module,
    examples: Sequence[Example],
    predicted: int,
    soft: Soft | None = None,
    distill_weight: float = 1.0,
) -> torch.Tensor:
    """Add the gradient of these examples' part in a mean over `predicted` tokens; returns that part
    of the loss, a float64 scalar on the device.

    The loss of a token is its cross-entropy, or with a teacher distill_weight times the divergence
    from it plus the rest times the cross-entropy.
    """
    head = model.get_output_embeddings()
    ids, labels = padded(examples, head.weight.device)
    states, targets = counted_states(model, ids, labels)
    share = 0.0 if soft is None else distill_weight
    loss, gradients = torch.zeros((), dtype=torch.float64, device=head.weight.device), []
    for rows in chunks(states, len(head.weight)):
        entering = states[rows].detach().requires_grad_()
        logits = head_logits(model, entering)
        part = 0.0
        if share < 1:
            part += (1 - share) * cross_entropy(logits, targets[rows], reduction="sum")
        if share > 0:
            part += share * divergence(logits, soft[rows])
        part = part / predicted
        part.backward()
        gradients.append(entering.grad)
        loss += part.detach()
    states.backward(torch.cat(gradients))
    return loss


@torch.no_grad()
def mean_loss(model: nn.Module, examples: Sequence[Example], at_a_time: int) -> float:
    """Mean cross-entropy of the examples' counted tokens, in nats."""
    head = model.get_output_embeddings()
    ordered = sorted(examples, key=lambda e: len(e.ids), reverse=True)
    total, count = 0.0, 0
    for begin in range(0, len(ordered), at_a_time):
        ids, labels = padded(ordered[begin : begin + at_a_time], head.weight.device)
        states, targets = counted_states(model, ids, labels)
        for rows in chunks(states, len(head.weight)):
            logits = head_logits(model, states[rows])
            total += cross_entropy(logits, targets[rows], reduction="sum").item()
        count += len(targets)
    return total / count
