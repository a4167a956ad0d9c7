"""ModelOpt's call on our landscape: bounds are kept, a search is gone on from, nonsense is refused."""

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import compressor
from compressor.adapters import model_opt
from compressor.adapters.batches import rows
from compressor.adapters.model_opt import prune
from compressor.errors import InputError
from compressor.model.loaded_model import LoadedModel
from compressor.planning.costs import Costs

IDS = torch.randint(3, 110, (8, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(llama):
    return AutoModelForCausalLM.from_pretrained(llama, dtype="auto")


def loader() -> DataLoader:
    return DataLoader(list(IDS), batch_size=4)


@pytest.mark.parametrize("measure", ["params", "flops"])
@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_the_bound_is_kept_and_nearly_used(model, measure, layout):
    config = {"data_loader": loader(), "repair": "none", "layout": layout}
    small, result = prune(model, "exact", {measure: "70%"}, config=config)
    size = Costs.of(LoadedModel(small), measure).total[measure]
    told = result["constraints"][measure]
    assert told["reached"] == size <= told["bound"]
    assert told["bound"] == pytest.approx(
        0.7 * Costs.of(LoadedModel(model), measure).total[measure]
    )
    assert size > 0.62 / 0.7 * told["bound"]
    assert small(IDS).logits.shape == model(IDS).logits.shape
    assert result["plan"].widths()[0]["ffn"] == small.model.layers[0].mlp.up_proj.out_features


def test_by_default_it_is_our_own_measured_plan_repaired(model):
    whole = LoadedModel(model).parameters
    config = {"data_loader": loader(), "repair": "ridge"}
    small, result = prune(model, constraints={"params": 0.7 * whole}, config=config)
    scores = compressor.score(model, IDS)
    options = {"allocate": "measured", "repair": "ridge"}
    plan = compressor.plan(scores, text=IDS, target_params=0.7 * whole, **options)
    again = compressor.repair(compressor.cut(model, plan), model, IDS, "ridge")
    assert plan.blocks == result["plan"].blocks
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, small.state_dict()[name]), name
    losses = {row["allocation"]: row["loss"] for row in result["candidates"]}
    assert result["taken"] == min(losses, key=losses.get) and len(losses) > 1


def test_a_search_is_gone_on_from(model, tmp_path, monkeypatch):
    file, config = tmp_path / "search", {"data_loader": loader(), "repair": "none"}
    config["checkpoint"] = file
    first, _ = prune(model, "exact", {"params": "70%"}, config=config)
    monkeypatch.setattr(model_opt, "score", lambda *_, **__: pytest.fail("it scores again"))
    again, _ = prune(model, "exact", {"params": "70%"}, config=config)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    prune(model, "exact", {"params": "80%"}, config=config)
    with pytest.raises(InputError, match="is of another model or text; name another `checkpoint`"):
        prune(model, "exact", {"params": "70%"}, config=config | {"max_iter_data_loader": 1})


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (None, "not of nothing"),
        ({"params": "60%", "flops": "60%"}, "not of params, flops"),
        ({"export_config": {}}, "not of export_config"),
        ({"params": "100%"}, "must be a share such as"),
        ({"params": "sixty"}, "must be a share such as"),
        ({"params": -1}, "must be a share such as"),
        ({"flops": float("nan")}, "must be a share such as"),
        ({"params": "1%"}, "cannot be reached"),
    ],
)
def test_bounds_that_cannot_be(model, constraints, message):
    config = {"data_loader": loader(), "repair": "none"}
    with pytest.raises(InputError, match=message):
        prune(model, "exact", constraints, config=config)


def test_calls_that_cannot_be(model):
    bound = {"params": "60%"}
    with pytest.raises(
        InputError, match="mode is 'fastnas'; it must be one of exact, measured, besa"
    ):
        prune(model, "fastnas", bound)
    with pytest.raises(InputError, match="no entry 'score_func'"):
        prune(model, constraints=bound, config={"score_func": len})
    with pytest.raises(InputError, match="give config a `data_loader`"):
        prune(model, constraints=bound)


def test_batches_as_loaders_have_them():
    padded = {"input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]])}
    mask = {"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    assert [row.tolist() for row in rows([padded | mask])] == [[5, 6], [7, 8, 9]]
    assert [row.tolist() for row in rows([padded])] == [[5, 6, 0], [7, 8, 9]]
    given = {"collect_func": lambda batch: batch[0], "max_iter_data_loader": 1}
    batches = [(IDS[:2], None), (IDS[2:], None)]
    taken = model_opt.calibration(model_opt.CONFIG | given | {"data_loader": batches})
    assert torch.equal(torch.stack(taken), IDS[:2])
    for wrong in ([torch.tensor([1, 2])], [{"labels": IDS}], ["text"]):
        with pytest.raises(InputError, match="A batch is token ids"):
            rows(wrong)
