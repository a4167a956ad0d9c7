"""The loop: what a step takes, what it does, and that an interruption changes nothing."""

from dataclasses import replace

import pytest
import torch

from compressor.config.recovery import RecoveryConfig, usual_rate
from compressor.errors import InputError, MachineError
from compressor.model.checkpoint import Checkpoint
from compressor.model.stream import BlockStream
from compressor.recovery import saved, training
from compressor.recovery.data import RecoveryData
from compressor.recovery.lora import adapters, load_adapted
from compressor.recovery.teacher import teach
from compressor.recovery.training import Training, learning_rate, order, train

CPU = torch.device("cpu")


def trained(folder, recovery, examples, state, seed=0, **options):
    model = load_adapted(folder, recovery, CPU, "auto", seed)
    data = RecoveryData(examples[2:], examples[:2])
    history = train(model, Training(recovery, data, seed), state, **options)
    return history, adapters(model)


def same(left: dict, right: dict) -> bool:
    return all(
        torch.equal(x, y) for name in left for x, y in zip(left[name], right[name], strict=True)
    )


def test_every_epoch_takes_every_sequence_once():
    steps = [order(step, 4, 10, seed=0) for step in range(15)]
    taken = [i for step in steps for i in step]
    epochs = [taken[begin : begin + 10] for begin in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert steps != [order(step, 4, 10, seed=1) for step in range(15)]
    assert set(order(0, 7, 3, seed=0)) == {0, 1, 2}  # more than an epoch in a step


def test_a_step_that_memory_does_not_hold_is_made_in_smaller_parts(
    llama, examples, tmp_path, monkeypatch
):
    """The same mean, whatever gradient a part has left when memory ran out; a measurement, too."""
    recovery = RecoveryConfig(steps=3, batch=4, accumulate=1, dropout=0.0, learning_rate=1e-2)
    expected, whole = trained(llama, recovery, examples, tmp_path / "whole")
    differentiate, measure, tried, told = training.differentiate, training.mean_loss, [], []

    def full(model, given, *more):
        tried.append(len(given))
        loss = differentiate(model, given, *more)
        if len(given) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. If so.")
        return loss

    def measured(model, given, at_a_time):
        if at_a_time > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return measure(model, given, at_a_time)

    monkeypatch.setattr(training, "differentiate", full)
    monkeypatch.setattr(training, "mean_loss", measured)
    history, parts = trained(llama, recovery, examples, tmp_path / "parts", tell=told.append)
    assert told == [
        "cpu does not hold 4 sequences of a step at once; going on with 2.",
        "cpu does not hold 2 sequences of a step at once; going on with 1.",
    ]
    assert tried == [2, *[1] * 12]
    assert history.losses == pytest.approx(expected.losses, rel=1e-5)
    for name, pair in whole.items():
        for one, other in zip(pair, parts[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_one_sequence_that_does_not_fit_is_said(llama, examples, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. If so.")

    monkeypatch.setattr(training, "differentiate", full)
    recovery = RecoveryConfig(steps=1, batch=2, learning_rate=1e-3)
    message = r"One sequence of \d+ tokens .* of cpu: CUDA .* 2.00 GiB"
    with pytest.raises(MachineError, match=message):
        trained(llama, recovery, examples, tmp_path / "state")


def test_the_rate_rises_and_falls():
    recovery = RecoveryConfig(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(step, recovery) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and 0 < rates[99] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(0, replace(recovery, warmup=0.0)) == 1.0
    assert learning_rate(0, replace(recovery, steps=1)) == 1.0


def test_the_usual_rate_of_a_wide_model_is_the_published_one():
    assert usual_rate(4096) == pytest.approx(1e-4)
    assert usual_rate(64) > usual_rate(128) > usual_rate(4096)
    assert RecoveryConfig(learning_rate=3e-4).of_width(64).learning_rate == 3e-4


def test_one_step_is_that_of_a_plain_loop(any_family, examples, tmp_path):
    """Accumulated, padded and chunked, against the model's own loss of all sequences at once."""
    recovery = RecoveryConfig(
        "lora", 1, batch=8, accumulate=4, dropout=0.0, warmup=0.0, learning_rate=0.1
    )
    history, found = trained(any_family, recovery, examples, tmp_path / "state")
    model = load_adapted(any_family, recovery, CPU, "auto", 0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.0)
    chosen = [examples[2:][i] for i in order(0, 8, 10, seed=0)]
    ids = torch.nn.utils.rnn.pad_sequence([e.ids for e in chosen], batch_first=True)
    labels = [e.labels for e in chosen]
    labels = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    assert history.losses == [pytest.approx(loss.item(), rel=1e-5)]
    for name, (_, b) in adapters(model).items():  # A has no gradient yet: B begins as zero
        torch.testing.assert_close(found[name][1], b, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", ["lora", "distill"])
def test_training_lowers_the_loss_of_what_it_sees(llama, examples, tmp_path, method):
    recovery = RecoveryConfig(method, 30, batch=10, accumulate=2, learning_rate=2e-2, save_every=15)
    teacher = None
    if method == "distill":
        teacher = teach(BlockStream(Checkpoint(llama)), examples[2:], 8, tmp_path / "teacher")
        recovery = replace(recovery, distill_weight=0.5)
    history, _ = trained(llama, recovery, examples, tmp_path / "state", teacher=teacher)
    assert history.losses[-1] < 0.9 * history.losses[0]
    assert [step for step, _ in history.held_back] == [0, 15, 30]
    assert history.stopped is None


@pytest.mark.parametrize("method", ["lora", "distill"])
def test_an_interrupted_training_ends_the_same(llama, examples, tmp_path, quick, method):
    """Bit by bit: adapters and losses; killed between two saved states, and right after one."""
    recovery = replace(quick, method=method)
    options = {}
    if method == "distill":
        stream = BlockStream(Checkpoint(llama))
        options = {"teacher": teach(stream, examples[2:], 8, tmp_path / "teacher")}
    history, whole = trained(llama, recovery, examples, tmp_path / "whole", **options)

    for last in (3, 4):

        def stop(done, total, last=last):
            if done == last:
                raise KeyboardInterrupt

        state = tmp_path / f"state-{last}"
        with pytest.raises(KeyboardInterrupt):
            trained(llama, recovery, examples, state, progress=stop, **options)
        seen = []
        resumed, parts = trained(
            llama,
            recovery,
            examples,
            state,
            progress=lambda done, _, s=seen: s.append(done),
            **options,
        )
        assert seen == [step for step in range(1, 7) if step > last // 2 * 2]
        assert resumed == history and same(parts, whole)
    state = tmp_path / "whole"
    assert same(trained(llama, recovery, examples, state, **options)[1], whole)


def test_a_state_is_whole_or_not_there(llama, examples, tmp_path, quick, monkeypatch):
    """Killed while a state is written: the one before it counts."""
    history, whole = trained(llama, quick, examples, tmp_path / "whole")
    real, written = saved.ShardFile, []

    class Dies(real):
        def __init__(self, path, *more):
            super().__init__(path, *more)
            written.append(path)

        def put(self, *more):
            super().put(*more)
            if len(written) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(saved, "ShardFile", Dies)
    with pytest.raises(KeyboardInterrupt):
        trained(llama, quick, examples, tmp_path / "state")
    resumed, parts = trained(llama, quick, examples, tmp_path / "state")
    assert resumed == history and same(parts, whole)


def test_another_seed_trains_otherwise(llama, examples, tmp_path, quick):
    _, one = trained(llama, quick, examples, tmp_path / "a", seed=0)
    _, two = trained(llama, quick, examples, tmp_path / "b", seed=1)
    assert not same(one, two)


def test_a_loss_that_is_not_finite_stops(llama, examples, tmp_path, quick):
    recovery = replace(quick, learning_rate=1e38, warmup=0.0, clip_norm=1e30)
    history, _ = trained(llama, recovery, examples, tmp_path / "state")
    assert len(history.losses) < 6
    assert history.stopped.startswith(f"at step {len(history.losses) + 1} the loss is ")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"method": "luck"},
            "--recover must be none, lora, distill, full or full-distill, not 'luck'",
        ),
        ({"method": "full", "rank": 4}, "lora_rank is of adapters, and --recover full trains the"),
        ({"steps": 0}, "recover_steps must be at least 1, not 0"),
        ({"batch": 0}, "recover_batch must be at least 1"),
        ({"accumulate": 3}, "recover_batch 8 cannot be divided into recover_accumulate 3"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, not 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, not nan"),
        ({"warmup": 1.0}, "recover_warmup must be from 0 to below 1"),
        ({"dropout": 1.0}, "lora_dropout must be from 0 to below 1"),
        ({"rank": -1}, "lora_rank must be at least 1"),
        ({"alpha": -1}, "lora_alpha must be positive"),
        ({"distill_weight": 1.5}, "distill_weight must be from 0 to 1"),
        ({"weight_decay": -1.0}, "weight_decay must be not negative"),
        ({"save_every": 0}, "recover_save_every must be at least 1"),
    ],
)
def test_bad_settings_are_named(changed, message):
    with pytest.raises(InputError, match=message):
        replace(RecoveryConfig(), **changed).check()
