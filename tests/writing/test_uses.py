"""What users do with a cut folder besides serving it: LoRA by peft, and drafting for its source."""

import peft
import pytest
import torch
from serving.folders import cut
from serving.models import TEXTS, source_of
from transformers import AutoModelForCausalLM, AutoTokenizer

KINDS = ("uniform", "nas", "per-layer")


@pytest.fixture(scope="module")
def folders(make_checkpoint, tmp_path_factory):
    """A Llama and its cuts, by the name of the layout."""
    folder = tmp_path_factory.mktemp("uses")
    source = source_of("llama", folder / "source", make_checkpoint)
    for kind in KINDS:
        cut(source, kind, folder / kind)
    return folder


def opened(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_lora_is_trained_and_merged(folders, tmp_path, kind):
    ids = AutoTokenizer.from_pretrained(folders / kind)(TEXTS[0], return_tensors="pt")["input_ids"]
    model = opened(folders / kind)
    with torch.no_grad():
        before = model(ids).logits
    targets = ["q_proj", "v_proj", "down_proj"]
    trained = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets))
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = trained(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
    merged = trained.merge_and_unload()
    with torch.no_grad():
        after = merged(ids).logits
    merged.save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        again = opened(tmp_path / "merged")(ids).logits
    torch.testing.assert_close(again, after, rtol=0, atol=1e-5)
    assert (after - before).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_it_drafts_for_its_source(folders, kind):
    """The tokens are the source's own, whatever is drafted."""
    tokenizer = AutoTokenizer.from_pretrained(folders / "source")
    ids = tokenizer(TEXTS[1], return_tensors="pt")["input_ids"]
    source, steps = opened(folders / "source"), []
    source.register_forward_pre_hook(lambda *_: steps.append(1))
    asked = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    alone = source.generate(ids, **asked)
    assert len(steps) == 24
    steps.clear()
    drafted = source.generate(ids, assistant_model=opened(folders / kind), **asked)
    assert torch.equal(alone, drafted)
    assert len(steps) <= 24
