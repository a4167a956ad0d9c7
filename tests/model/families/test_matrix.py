"""Every family by every method and in every layout: scored, cut, repaired, written, verified and
generating; or refused in a sentence.

`make families` writes what these tests have seen into docs/families.md.
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.config.layouts import LAYOUTS
from compressor.config.repair import DEFAULT_REPAIR
from compressor.config.target import Target
from compressor.errors import InputError
from compressor.job.result import make_record
from compressor.model.checkpoint import Checkpoint
from compressor.model.families import FAMILIES
from compressor.model.groups import GROUPS, counts
from compressor.model.per_layer import ships_own_code
from compressor.model.stream import BlockStream
from compressor.planning.allocation import allocate
from compressor.planning.lattice import Wanted
from compressor.repairing.streaming import Repair
from compressor.scoring.methods import CHANNELS, EXPERTS, METHODS
from compressor.scoring.score import score
from compressor.text.texts import read_text
from compressor.text.tokens import TokenSet, tokenize
from compressor.verification.child import verify_here
from compressor.writing.cuts import write
from compressor.writing.record import write_record

# What a family cannot be written as, and the words that say so.
REFUSED: dict[tuple[str, str], str] = {
    ("bloom", "uniform"): "use --layout per-layer",
    ("falcon", "per-layer"): "no code for blocks of falcon",
    ("gpt2", "per-layer"): "no code for blocks of gpt2",
    ("gpt_neox", "per-layer"): "no code for blocks of gpt_neox",
    ("opt", "per-layer"): "no code for blocks of opt",
    ("qwen3_5_text", "per-layer"): "no code for blocks of qwen3_5_text",
    ("mistral", "nas"): "attend to 5 tokens",
}
REFUSED |= {
    (family, "nas"): f"what Llama does (llama, mistral, phi3, qwen2), not for {family}"
    for family in FAMILIES
    if family not in ("llama", "mistral", "phi3", "qwen2")
}
MIXTURES = [name for name, family in FAMILIES.items() if family.experts]
REFUSED |= {(name, "per-layer"): f"no code for blocks of {name}" for name in MIXTURES}
REFUSED |= {(name, "padded"): "An expert of zeros would be chosen" for name in MIXTURES}
RATIOS = (0.85, 0.7)
DOCUMENT = Path(__file__).parents[3] / "docs/families.md"
REFUSED_MODES: dict[tuple[str, str], str] = {}
MODES = [
    (method.name, mode.replace(":a", ":0.5"))
    for method in METHODS.values()
    for mode in method.modes
]


@pytest.fixture(scope="module")
def prepared(every_family, text_file):
    """A family's checkpoint, its text, its stream and scores of one forward."""
    checkpoint = Checkpoint(every_family)
    tokens = tokenize(read_text(str(text_file)), checkpoint.tokenizer(), 24, 8)
    stream = BlockStream(checkpoint)
    method = "reap" if checkpoint.family.experts else "wanda-sp"
    return checkpoint, tokens, stream, score(checkpoint, method, None, tokens, stream)


@pytest.mark.parametrize(("method", "mode"), MODES)
def test_scored_by_every_method(prepared, method, mode, record_property):
    checkpoint, tokens, stream, _ = prepared
    family = checkpoint.family.model_type
    if (EXPERTS if checkpoint.family.experts else CHANNELS) not in METHODS[method].units:
        with pytest.raises(InputError, match="of an FFN, and a unit of"):
            METHODS[method].check_units(checkpoint.family)
        return
    refused = REFUSED_MODES.get((family, mode))
    record_property("family", family)
    record_property("method", f"{method}:{mode}")
    texts = TokenSet(tokens.sequences[:3], tokens.protocol)
    try:
        activation = checkpoint.config.get("hidden_act", "silu")
        METHODS[method].check_activation(mode, activation, checkpoint.family)
        found = score(checkpoint, method, mode, texts, stream)
    except InputError as sentence:
        record_property("outcome", f"refused: {sentence}")
        assert refused and refused in str(sentence)
        return
    assert not refused
    record_property("outcome", "scored")
    for block, units in zip(found.blocks, checkpoint.block_units, strict=True):
        for group, values in block.items():
            assert values.shape == (units[group],) and values.isfinite().all()
            assert (values >= 0).all() and (len(values.unique()) > 1 or not units[group])


@pytest.mark.parametrize("keep", RATIOS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_written_in_every_layout(prepared, layout, keep, tmp_path, record_property):
    checkpoint, tokens, stream, scores = prepared
    family = checkpoint.family.model_type
    record_property("family", family)
    record_property("layout", layout)
    first = next(b for b, units in enumerate(checkpoint.block_units) if units["ffn"])
    protect = () if layout == "uniform" else (first,)
    out, target = tmp_path / "out", Target("keep-blocks", keep)
    refused = REFUSED.get((family, layout))
    try:
        wanted = Wanted(layout="nas", whole_heads=True) if layout == "nas" else Wanted()
        plan = allocate(scores, checkpoint, target, wanted, protect)
        repair = Repair(stream, plan, tokens, DEFAULT_REPAIR)
        container = write(checkpoint, plan, out, layout, changes=repair.blocks())
    except InputError as sentence:
        record_property("outcome", f"refused: {sentence}")
        if refused is None:
            raise
        assert refused in str(sentence)
        assert not out.exists()
        return
    assert refused is None
    write_record(out, make_record(checkpoint, plan, layout, container, repair))
    found = verify_here(out, checkpoint.path)
    assert found["logits_difference"] <= 1e-3
    generates(out)
    fewest = {g: min(counts(plan.widths(), g), default=0) for g in GROUPS}
    assert (
        fewest["ffn"] < checkpoint.units["ffn"]
        or fewest["attention"] < checkpoint.units["attention"]
    )
    for group, width in fewest.items():
        record_property(group, f"{width} of {checkpoint.units[group]}" if width else "whole")
    loader = "shipped code" if ships_own_code(out) else "stock"
    record_property("outcome", f"{loader}, as {container}")


def generates(folder) -> None:
    """The same tokens with a dynamic, a static and no cache."""
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=ships_own_code(folder))
    prompt = torch.tensor([[1, 40, 41, 42]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(prompt, use_cache=False, **options)
    for cache in ("dynamic", "static"):
        assert torch.equal(model.generate(prompt, cache_implementation=cache, **options), plain), (
            cache
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_documented(family):
    assert f"| `{family}` |" in DOCUMENT.read_text(encoding="utf-8"), "run `make families`"
