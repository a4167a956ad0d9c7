"""Train the bundled model: a small Llama on the sources of Python's standard library.

    python examples/train_tiny_llama.py --out examples/tiny-llama
    python examples/train_tiny_llama.py --out build/tiny-mixture --experts 8 --hidden 128 --blocks 4 \
        --length 256 --steps 800        # a mixture of experts in its place, and a smaller one

Grouped-query attention (8 query heads on 4 KV heads), SwiGLU, tied head, a byte-level BPE
vocabulary learnt from the same text. The modules of `compressor/held_out_modules.txt` are never
trained on; the final figure is bits per byte on them, beside `xz -9` of the same bytes.
Matrices inside the blocks are optimised with Muon, the rest (stacks of experts among it) with AdamW
(torch.optim has both).
"""

import json
import lzma
import math
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

from compressor.text.stdlib_text import stdlib_documents

BOS, EOS = "<s>", "</s>"


def train_tokenizer(documents: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text is representable, and no unknown token is needed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)


def token_stream(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> torch.Tensor:
    """All documents in one row of ids, each opened by BOS."""
    return torch.cat([torch.tensor(ids) for ids in tokenizer(documents)["input_ids"]])


def build_model(
    vocab_size: int, length: int, tokenizer: PreTrainedTokenizerFast, sizes: dict, experts: int
) -> LlamaForCausalLM | MixtralForCausalLM:
    """A Llama; with experts a Mixtral, each of a quarter of the Llama's channels and two to a token."""
    hidden = sizes["hidden_size"]
    settings = sizes | {
        "vocab_size": vocab_size,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 64,
        "head_dim": 32,
        "max_position_embeddings": length,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if not experts:
        return LlamaForCausalLM(LlamaConfig(intermediate_size=3 * hidden, **settings))
    settings |= {"num_local_experts": experts, "num_experts_per_tok": 2}
    balanced = {"output_router_logits": True, "router_aux_loss_coef": 0.01}  # experts of equal use
    return MixtralForCausalLM(
        MixtralConfig(intermediate_size=3 * hidden // 4, **settings, **balanced)
    )


def bits_per_byte(model, tokenizer, documents: list[str], length: int) -> float:
    """Total code length of the documents over their UTF-8 bytes; windows of `length`, stride half."""
    nats = 0.0
    with torch.inference_mode():
        for document in documents:
            ids = tokenizer(document, return_tensors="pt")["input_ids"]
            scored = 1  # BOS is given
            for start in range(0, ids.shape[1], length // 2):
                window = ids[:, start : start + length]
                if start + window.shape[1] <= scored:
                    break
                logits = model(window[:, :-1]).logits[0].float()
                losses = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none")
                nats += losses[scored - start - 1 :].sum().item()
                scored = start + window.shape[1]
    return nats / math.log(2) / sum(len(document.encode()) for document in documents)


def learning_rate_scale(step: int, steps: int, warmup: int = 50) -> float:
    """Warm up, hold, then fall linearly to zero over the last 60 %."""
    return min((step + 1) / warmup, 1.0, (steps - step) / (0.6 * steps))


def main(
    out: Annotated[Path, typer.Option(help="Folder the checkpoint is written to.")],
    steps: int = 3200,
    batch: int = 8,
    length: int = 512,
    vocab_size: int = 4096,
    hidden: int = 256,
    blocks: int = 6,
    experts: int = 0,
    muon_rate: float = 1e-2,
    adam_rate: float = 5e-3,
    seed: int = 0,
    threads: int = 0,
) -> None:
    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)
    train, held_out = stdlib_documents("train"), stdlib_documents("held-out")
    tokenizer = train_tokenizer(train, vocab_size)
    stream = token_stream(tokenizer, train)
    sizes = {"hidden_size": hidden, "num_hidden_layers": blocks}
    model = build_model(vocab_size, length, tokenizer, sizes, experts)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = torch.optim.Muon(
        matrices, lr=muon_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda s: learning_rate_scale(s, steps))
        for o in (muon, adam)
    ]
    print(
        f"{len(train)} modules, {sum(map(len, train)):,} characters, {len(stream):,} tokens; "
        f"{model.num_parameters():,} parameters; {steps} steps of {batch} x {length} tokens",
        flush=True,
    )

    begun, running = time.monotonic(), None
    for step in range(steps):
        starts = torch.randint(len(stream) - length, (batch,))
        windows = torch.stack([stream[s : s + length] for s in starts])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=windows, labels=windows).loss
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip((muon, adam), schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            minutes = (time.monotonic() - begun) / 60
            print(f"step {step + 1:5d}  loss {running:.3f}  {minutes:.1f} min", flush=True)

    model = model.to(torch.bfloat16).eval()
    if experts:
        model.config.output_router_logits = False  # which training alone needs
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    text = "".join(held_out).encode()
    figures = {
        "bits_per_byte": round(bits_per_byte(model, tokenizer, held_out, length), 4),
        "xz_bits_per_byte": round(8 * len(lzma.compress(text, preset=9)) / len(text), 4),
        "held_out_modules": len(held_out),
        "held_out_bytes": len(text),
        "minutes": round((time.monotonic() - begun) / 60, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
