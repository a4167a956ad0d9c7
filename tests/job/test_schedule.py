"""The time that a job still takes, by a clock that the tests turn on."""

import pytest

from compressor.job.schedule import Part, Schedule, words


class Clock:
    """Seconds since the job began."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def schedule(clock):
    """The function that makes one of parts as (stage, seconds) or (stage, seconds, result)."""
    return lambda *parts: Schedule([Part(*part) for part in parts], clock)


def go(schedule: Schedule, seconds: float, *stage) -> None:
    """A whole stage that takes so long."""
    schedule.begin(*stage)
    schedule.clock.now += seconds
    schedule.end()


# -- what was forecast ------------------------------------------------------------------------------


def test_before_anything_all_is_left(clock, schedule):
    of_parts = schedule(("score", 30), ("repair", 70))
    assert (of_parts.left, of_parts.whole, of_parts.slowness) == (100, 100, 1)
    clock.now = 50
    assert of_parts.left == 100


def test_of_no_parts_nothing_is_left(schedule):
    nothing = schedule()
    assert (nothing.left, nothing.whole, nothing.slowness, nothing.unknown) == (0, 0, 1, [])


def test_a_stage_without_steps_counts_down_to_nothing(clock, schedule):
    of_parts = schedule(("score", 30), ("repair", 70))
    clock.now = 5
    of_parts.begin("score")
    for now, left in ((5, 100), (15, 90), (35, 70), (75, 70)):
        clock.now = now
        assert of_parts.left == left


def test_what_is_over_is_not_left(schedule):
    of_parts = schedule(("score", 30), ("repair", 70))
    go(of_parts, 30, "score")
    assert of_parts.left == 70
    go(of_parts, 70, "repair")
    assert of_parts.left == 0


# -- slowness ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "slowness", "left"),
    [
        (110, 2.0, 100),  # (110 + 10) / (50 + 10): a tenth of the whole is taken as forecast
        (50, 1.0, 50),
        (20, 0.5, 25),
        (0, 1 / 6, 50 / 6),
    ],
)
def test_what_a_stage_took_corrects_those_to_come(clock, schedule, seconds, slowness, left):
    of_parts = schedule(("score", 50), ("repair", 50))
    go(of_parts, seconds, "score")
    assert of_parts.slowness == pytest.approx(slowness)
    assert of_parts.left == pytest.approx(left)
    of_parts.begin("repair")
    assert of_parts.left == pytest.approx(left)
    clock.now += 5
    assert of_parts.left == pytest.approx(left - 5)


def test_the_stage_that_goes_on_does_not_count_yet(clock, schedule):
    of_parts = schedule(("score", 50), ("repair", 50))
    of_parts.begin("score")
    clock.now = 110
    assert (of_parts.slowness, of_parts.left) == (1, 50)


def test_stages_add_up(schedule):
    of_parts = schedule(("score", 40), ("select", 40), ("repair", 20))
    go(of_parts, 40, "score")
    go(of_parts, 130, "select")
    assert of_parts.slowness == pytest.approx(2)  # (170 + 10) / (80 + 10)
    assert of_parts.left == pytest.approx(40)


def test_pauses_between_stages_do_not_count(clock, schedule):
    of_parts = schedule(("score", 40), ("select", 40), ("repair", 20))
    for stage in ("score", "select"):
        clock.now += 1000
        go(of_parts, 40, stage)
    assert of_parts.slowness == pytest.approx(1)


def test_a_forecast_of_nothing_divides_by_nothing(schedule):
    of_parts = schedule(("score", 0.0))
    go(of_parts, 9, "score")
    assert of_parts.slowness == pytest.approx(10)  # (9 + 1) / (0 + 1)
    assert of_parts.left == 0


# -- steps ------------------------------------------------------------------------------------------


def test_steps_slower_than_foreseen(clock, schedule):
    of_parts = schedule(
        ("score", 100), ("repair", 40)
    )  # ten steps of 10 s; the forecast counts once
    of_parts.begin("score")
    of_parts.advance(0, 10)
    assert of_parts.left == pytest.approx(140)
    clock.now = 30
    of_parts.advance(1, 10)
    assert of_parts.left == pytest.approx(9 * 20 + 40)  # (10 + 30) / 2 a step
    clock.now = 40
    assert of_parts.left == pytest.approx(9 * 20 - 10 + 40)
    clock.now = 80
    of_parts.advance(2, 10)
    assert of_parts.left == pytest.approx(8 * 30 + 40)  # (10 + 80) / 3


def test_steps_quicker_than_foreseen(clock, schedule):
    of_parts = schedule(("score", 100))
    of_parts.begin("score")
    clock.now = 8
    of_parts.advance(4, 10)
    assert of_parts.left == pytest.approx(6 * 3.6)  # (10 + 8) / 5 a step


def test_of_many_steps_a_tenth_is_taken_as_forecast(clock, schedule):
    of_parts = schedule(("score", 40))
    of_parts.begin("score")
    clock.now = 12
    of_parts.advance(4, 40)
    assert of_parts.left == pytest.approx(36 * 2)  # (4 * 1 + 12) / (4 + 4) a step


def test_a_step_that_takes_long_ends_at_any_moment(clock, schedule):
    of_parts = schedule(("score", 100))
    of_parts.begin("score")
    clock.now = 30
    of_parts.advance(1, 10)
    for now, left in ((50, 160), (51, 160), (1000, 160)):  # eight steps of 20 s after this one
        clock.now = now
        assert of_parts.left == pytest.approx(left)


def test_the_last_step_may_take_longer_by_what_was_foreseen(clock, schedule):
    """Ten steps of 5 s, and the last one 50 s more."""
    of_parts = schedule(("repair", 100, "", 50.0), ("verify", 7))
    of_parts.begin("repair")
    assert of_parts.left == 107
    for done in range(1, 10):
        clock.now = 5.0 * done
        of_parts.advance(done, 10)
        assert of_parts.left == pytest.approx(5 * (10 - done) + 50 + 7)
    clock.now += 30
    assert of_parts.left == pytest.approx(25 + 7)
    clock.now += 100
    assert of_parts.left == 7
    of_parts.advance(10, 10)
    assert of_parts.left == 7


def test_after_the_last_step_the_rest_is_left(clock, schedule):
    of_parts = schedule(("score", 100), ("repair", 40))
    of_parts.begin("score")
    for done in range(1, 11):
        clock.now += 10
        of_parts.advance(done, 10)
    assert of_parts.left == pytest.approx(40)
    clock.now += 500
    assert of_parts.left == pytest.approx(40)


def test_steps_are_forecast_as_slow_as_the_stages_before(clock, schedule):
    of_parts = schedule(("score", 50), ("repair", 50))
    go(of_parts, 110, "score")
    of_parts.begin("repair")
    of_parts.advance(0, 10)
    assert of_parts.left == pytest.approx(100)  # twice as slow: ten steps of 10 s, not of 5 s
    clock.now += 30
    of_parts.advance(1, 10)
    assert of_parts.left == pytest.approx(9 * 20)


# -- interrupted jobs -------------------------------------------------------------------------------


def test_stages_passed_over_are_neither_left_nor_measured(schedule):
    of_parts = schedule(
        ("score", 30), ("evaluate", None), ("select", 20), ("repair", 50), ("write", 9)
    )
    of_parts.begin("repair")
    assert of_parts.left == 59 and of_parts.unknown == []
    go(of_parts, 9, "write")
    assert (of_parts.left, of_parts.slowness) == (0, 1)


@pytest.mark.parametrize(("seconds", "slowness"), [(70, 1), (152, 2)])
def test_slowness_is_that_of_the_stages_that_ran(schedule, seconds, slowness):
    of_parts = schedule(("score", 30), ("select", 20), ("repair", 70))
    go(of_parts, seconds, "repair")
    assert of_parts.slowness == pytest.approx(slowness)  # (152 + 12) / (70 + 12)


def test_what_was_passed_over_is_not_foreseen_any_more(schedule):
    of_parts = schedule(("score", 30), ("repair", 70))
    of_parts.begin("repair")
    of_parts.begin("score")
    assert of_parts.left is None


def test_results_have_stages_of_their_own(schedule):
    parts = [(stage, 10, of) for of in ("keep-0.8", "keep-0.6") for stage in ("repair", "write")]
    of_parts = schedule(*parts)
    go(of_parts, 10, "repair", "keep-0.8")
    assert of_parts.left == 30
    of_parts.begin("repair", "keep-0.6")  # the other one is written already
    assert of_parts.left == 20
    of_parts.begin("write")
    assert of_parts.left is None


def test_kept_steps_are_neither_left_nor_measured(clock, schedule):
    of_parts = schedule(("score", 100), ("repair", 40))
    of_parts.begin("score", kept=4)
    clock.now = 5
    of_parts.advance(4, 10)  # read, which takes 5 s
    assert of_parts.left == pytest.approx(6 * 10 + 40)
    clock.now = 35
    of_parts.advance(5, 10)
    assert of_parts.left == pytest.approx(5 * 20 + 40)  # (10 + 30) / 2 a step
    of_parts.end()
    assert (of_parts.slowness, of_parts.left) == (1, 40)


def test_kept_steps_of_an_unknown_stage_tell_nothing(clock, schedule):
    of_parts = schedule(("repair", 40))
    of_parts.begin("train", kept=4)
    clock.now = 5
    of_parts.advance(4, 10)
    assert of_parts.left is None
    clock.now = 8
    of_parts.advance(5, 10)
    assert of_parts.left == pytest.approx(5 * 3 + 40)


# -- stages of unknown length -----------------------------------------------------------------------


def test_a_stage_that_was_not_foreseen(clock, schedule):
    of_parts = schedule(("repair", 70))
    of_parts.begin("verify")
    assert of_parts.left is None
    of_parts.advance(0, 4)
    assert of_parts.left is None
    clock.now = 6
    of_parts.advance(1, 4)
    assert of_parts.left == pytest.approx(3 * 6 + 70)
    clock.now = 10
    assert of_parts.left == pytest.approx(3 * 6 - 4 + 70)
    of_parts.end()
    assert (of_parts.slowness, of_parts.left) == (1, 70)


def test_stages_that_nobody_knows_are_named_once(schedule):
    of_parts = schedule(
        ("evaluate", None),
        ("score", 30),
        ("train", None, "a"),
        ("write", 5, "a"),
        ("train", None, "b"),
    )
    assert of_parts.unknown == ["evaluate", "train"] and of_parts.left == of_parts.whole == 35
    of_parts.begin("evaluate")
    assert of_parts.unknown == ["train"] and of_parts.left is None
    of_parts.end()
    go(of_parts, 30, "score")
    go(of_parts, 900, "train", "a")
    assert of_parts.unknown == ["train"] and (of_parts.slowness, of_parts.left) == (1, 5)
    of_parts.begin("train", "b")
    assert of_parts.unknown == []


def test_steps_and_ends_of_no_stage_change_nothing(clock, schedule):
    of_parts = schedule(("score", 30))
    of_parts.advance(1, 2)
    of_parts.end()
    clock.now = 7
    assert (of_parts.left, of_parts.slowness) == (30, 1)
    go(of_parts, 30, "score")
    of_parts.end()
    assert (of_parts.left, of_parts.slowness) == (0, 1)


# -- in words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (0.6, "1 s"),
        (60, "60 s"),
        (99.4, "99 s"),
        (99.5, "2 min"),
        (99.99, "2 min"),
        (100, "2 min"),
        (149, "2 min"),
        (151, "3 min"),
        (3600, "60 min"),
        (5969, "99 min"),
        (5971, "1 h 40 min"),
        (7169, "1 h 59 min"),
        (7171, "2 h 00 min"),
        (7800, "2 h 10 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_words(seconds, text):
    assert words(seconds) == text
