"""Text that a model writes itself, to calibrate on.

What a compression is fitted on should be what the model will compute, and nothing is more like that than
its own text (Williams et al., arXiv 2410.17170; theirs is to begin with BOS alone). Ours is plain
sampling: every token from the whole distribution as it is, because only then do the means over the text
estimate those under the model. Where a document ends, the next one begins in the same row, as models
are trained on text: so no row waits for the longest of its batch, and what stands before does no harm.
"""

from collections.abc import Iterator
from itertools import count, groupby

import torch

from compressor.config.seeding import STRIDE
from compressor.errors import InputError

BATCH = 64  # rows written side by side, at most
EMPTY_BATCHES = 8  # in a row, until a model counts as one that writes nothing


def written(
    model, tokenizer, tokens: int, length: int, seed: int, rows: int = BATCH
) -> Iterator[tuple[str, int]]:
    """Documents and their tokens, until there are `tokens` (with BOS, which opens each of them).

    A document has at most `length` tokens, and ends before the model's BOS or EOS; `rows` are written
    side by side. The same seed gives the same text on the same machine. InputError for a tokenizer
    without BOS and EOS, and for a model that ends every document at once.
    """
    opening = opening_of(tokenizer)
    if opening is None:
        raise InputError(
            "The tokenizer has neither BOS nor EOS to begin a document with; calibrate on a text."
        )
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    ends = {opening, tokenizer.eos_token_id, *stops} - {None}
    batch, left, empty = min(rows, -(-tokens // length)), tokens, 0
    for number in count():
        empty += 1
        sampled = sample(model, opening, sorted(ends), batch, length, seed + number * STRIDE)
        for document in (document for ids in sampled for document in divided(ids, ends)):
            text = tokenizer.decode(document, skip_special_tokens=True)
            if not text.strip():
                continue
            yield text, 1 + len(document)
            empty, left = 0, left - 1 - len(document)
            if left <= 0:
                return
        if empty == EMPTY_BATCHES:
            raise InputError(
                f"The model ended every document of {EMPTY_BATCHES * batch} rows of {length} tokens "
                "before it wrote a word; calibrate on a text."
            )


def opening_of(tokenizer) -> int | None:
    """The token that a document begins with, if there is one."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return eos if bos is None else bos


def divided(ids: list[int], ends: set[int]) -> Iterator[list[int]]:
    """The documents of a row, without what stands between them."""
    for between, document in groupby(ids, ends.__contains__):
        if not between:
            yield list(document)


def sample(
    model, opening: int, ends: list[int], batch: int, length: int, seed: int
) -> list[list[int]]:
    """`batch` rows of `length` tokens, all but the first one, `opening`; it also follows every end."""
    from transformers import GenerationConfig, LogitsProcessorList

    # A cache that grows is copied at every token. Bloom's class of transformers 5.19 takes no other.
    static = model._can_compile_fullgraph and model.config.model_type != "bloom"
    settings = GenerationConfig(
        do_sample=False,  # `drawn` leaves one choice
        max_length=length,
        eos_token_id=model.config.vocab_size,  # no token; None stands for the model's own
        pad_token_id=ends[0],
        cache_implementation="static" if static else None,
        disable_compile=True,
    )
    prompts = torch.full((batch, 1), opening, device=model.device)
    random = torch.Generator(model.device).manual_seed(seed)
    closing = torch.tensor([end for end in ends if end != opening], device=model.device)

    def drawn(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """One token a row has a score: `torch.multinomial` draws a number for every token instead."""
        sums = scores.float().softmax(-1).cumsum(-1)
        place = torch.rand(len(ids), 1, generator=random, device=ids.device) * sums[:, -1:]
        chosen = torch.searchsorted(sums, place).clamp_max(scores.shape[-1] - 1)
        chosen[torch.isin(ids[:, -1], closing)] = opening
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen, 0.0)

    with torch.inference_mode():
        sequences = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            generation_config=settings,
            logits_processor=LogitsProcessorList([drawn]),
        )
    return sequences[:, 1:].tolist()


def continuations(model, tokenizer, prompts: torch.Tensor, tokens: int) -> list[tuple[str, str]]:
    """Of each row of prompts [n, length] its text, and what the model writes after it: the likeliest
    token every time, at most so many, up to the model's own end.
    """
    from transformers import GenerationConfig

    prompts = prompts.to(model.device)
    stops = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None}
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=model.config.get_text_config().vocab_size,  # no token: rows stay as long
        pad_token_id=0,
        disable_compile=True,
    )
    with torch.inference_mode():
        rows = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), generation_config=settings
        )
    found = []
    for row in rows.tolist():
        begun, new = row[: prompts.shape[1]], row[prompts.shape[1] :]
        end = next((place for place, token in enumerate(new) if token in ends), len(new))
        # Together, since a word's own blank may be in its first token.
        said, whole = (
            tokenizer.decode(ids, skip_special_tokens=True) for ids in (begun, begun + new[:end])
        )
        found.append((said, whole[len(said) :]))
    return found
