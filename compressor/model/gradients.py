"""The streamed backward: gradients of the language-model loss, block by block, for a model that is
never in memory as a whole.

The forward keeps what enters every block, on the host or in files. The loss and its gradient are
taken at the top, a few tokens' logits at a time. Then, from the last block to the first, a block is
loaded, recomputed and differentiated, and the gradient of its input goes on to the block before.
Gradients of embedding and head are never built.
"""

from collections.abc import Iterator

import torch

from compressor.errors import InputError
from compressor.model.activations import Activations, states_of
from compressor.model.finite import Levels
from compressor.model.modules import loaded
from compressor.model.pauses import Pauses
from compressor.model.stream import BlockStream, Visit, logits_rows


def backward(
    stream: BlockStream,
    batches: list[torch.Tensor],
    visit: Visit,
    pauses: Pauses | None = None,
) -> list[float]:
    """Losses [batches]: the mean cross-entropy of every batch's predicted tokens.

    visit(index, layer, steps) is called once a block, from the last to the first, with its weights
    in place and none of them asking for a gradient; steps() is an iterator that runs the block
    forward and backward on one batch after the other and yields each batch's index, so gradients
    are taken by hooks. Batches are token ids [sequences, tokens] without padding. With `pauses` it
    begins where an interrupted one has come to: blocks behind that are not visited.

    InputError when a loss or the gradient of a block's input is not finite.
    """
    called: list[tuple] = []
    gradients = Activations(stream.place)
    losses: list[float] = []
    if pauses is not None and (reached := pauses.restore(gradients)):
        last, told = reached
        losses = told["losses"]
        stream.run(batches, kept=called, blocks=last + 1).discard()
    else:
        last = stream.checkpoint.blocks - 1
        final = stream.run(batches, kept=called)
        losses = head_gradients(stream, batches, final, gradients)
        final.discard()
    for index, weights in stream.weights(range(last, -1, -1)):
        with loaded(stream.layers[index], weights) as layer:
            del weights
            inputs, calls = called[index]
            passed = Activations(stream.place)

            def steps(
                layer=layer,
                index=index,
                inputs=inputs,
                calls=calls,
                gradients=gradients,
                passed=passed,
            ) -> Iterator[int]:
                levels: Levels[int] = Levels()
                for i, (args, call) in enumerate(calls):
                    hidden = inputs.get(i, stream.device).requires_grad_()
                    with torch.enable_grad():
                        output = states_of(layer(hidden, *args, **call))
                        output.backward(gradients.get(i, stream.device))
                    levels.add(i, hidden.grad)
                    passed.put(i, hidden.grad)
                    yield i
                for i in levels.not_finite():
                    raise InputError(
                        f"The gradient that leaves block {index} is not finite for sequence {i}; "
                        "try --dtype float32."
                    )

            visit(index, layer, steps)
        inputs.discard()
        gradients.discard()
        gradients = passed
        if pauses is not None and index:
            pauses.keep(index - 1, len(batches), gradients, {"losses": losses})
    gradients.discard()
    return losses


def head_gradients(
    stream: BlockStream, batches: list[torch.Tensor], final: Activations, gradients: Activations
) -> list[float]:
    """The loss of every batch; `gradients` receives that of the last block's output.

    The model's own forward computes the logits, of some positions at a time.
    """
    losses: list[torch.Tensor] = []
    levels: Levels[int] = Levels()
    with stream.outer(head=True) as model:
        for i, batch in enumerate(batches):
            ids = batch.to(stream.device)
            hidden = final.get(i, stream.device).requires_grad_()
            predicted = ids.shape[0] * (ids.shape[1] - 1)
            exact = torch.promote_types(stream.dtype, torch.float32)
            loss = torch.zeros((), dtype=exact, device=stream.device)
            many = max(1, logits_rows(stream.checkpoint.vocabulary) // ids.shape[0])
            for positions in torch.arange(ids.shape[1] - 1, device=ids.device).split(many):
                with torch.enable_grad(), stream.returning(hidden):
                    logits = model(input_ids=ids, use_cache=False, logits_to_keep=positions).logits
                    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                    part = torch.nn.functional.cross_entropy(
                        logits.flatten(0, 1), ids[:, positions + 1].flatten(), reduction="sum"
                    )
                    (part / predicted).backward()
                loss += part.detach() / predicted
            losses.append(loss)
            levels.add(i, loss)
            levels.add(i, hidden.grad)
            gradients.put(i, hidden.grad)
    told = torch.stack(losses).tolist()
    for i in levels.not_finite():
        raise InputError(
            f"The loss of sequence {i} is {told[i]} or its gradient is not finite; try --dtype float32."
        )
    return told
