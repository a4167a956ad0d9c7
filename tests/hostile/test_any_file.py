"""Whatever a file holds, reading it ends in success or a sentence, in a second and a gigabyte."""

import shutil

import pytest
from hostile_guard import outcome
from hostile_targets import QUICK, TARGETS, WHOLE
from hostile_values import spoiled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

RANDOM = st.randoms(use_true_random=False)
NOT_TOO_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
FEW = settings(derandomize=True, database=None, deadline=None, suppress_health_check=NOT_TOO_SLOW)


@pytest.fixture(scope="session")
def place(llama, tmp_path_factory):
    """The function that gives a target's folder: what is read there lies beside a sound model."""
    top = tmp_path_factory.mktemp("hostile")
    shutil.copytree(llama, top / "sound")

    def of(target):
        folder = top / target.name
        if not folder.exists():
            shutil.copytree(llama, folder) if target.model else folder.mkdir()
            for seed in seeds(target, folder):  # what imports something does it here
                (folder / target.file).write_bytes(seed)
                target.read(folder)
        return folder

    return of


def seeds(target, folder) -> list[bytes]:
    return [*target.seeds] or [(folder.with_name("sound") / target.file).read_bytes()]


def check(target, folder, random) -> None:
    data = random.choice(seeds(target, folder))
    data = spoiled(data, random, target.file.endswith(".safetensors"))
    (folder / target.file).write_bytes(data)
    outcome(target.read, folder)


@pytest.mark.parametrize("name", [target.name for target in QUICK])
@settings(FEW, max_examples=60)
@given(random=RANDOM)
def test_any_file(place, name, random):
    check(TARGETS[name], place(TARGETS[name]), random)


@pytest.mark.parametrize("name", [target.name for target in WHOLE])
@settings(FEW, max_examples=12)
@given(random=RANDOM)
def test_any_file_of_a_model(place, name, random):
    check(TARGETS[name], place(TARGETS[name]), random)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_sound_file_is_read(place, name):
    """So the tests above do not all end at the first sentence."""
    target = TARGETS[name]
    folder = place(target)
    for seed in seeds(target, folder):
        (folder / target.file).write_bytes(seed)
        assert outcome(target.read, folder) is None
