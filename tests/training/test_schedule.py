import pytest

from ibtrain.config import TrainingSection
from ibtrain.training.schedule import learning_rate


def section(**changes) -> TrainingSection:
    values = {
        "steps": 12,
        "global_batch": 1,
        "micro_batch": 1,
        "learning_rate": 1.0,
        "warmup_steps": 4,
        "warmup_start": 0.2,
        "min_learning_rate": 0.0,
    }
    return TrainingSection(**(values | changes))


def rates(training: TrainingSection, steps: range) -> list[float]:
    return [learning_rate(step, training) for step in steps]


def test_every_step_of_a_short_run():
    """Linear from 0.2 to 1 in four steps, then (1 + cos(pi k / 8)) / 2."""
    assert rates(section(), range(14)) == pytest.approx(
        [
            0.2,
            0.4,
            0.6,
            0.8,
            1.0,
            0.9619397662556434,
            0.8535533905932737,
            0.6913417161825449,
            0.5,
            0.3086582838174551,
            0.1464466094067262,
            0.03806023374435663,
            0.0,
            0.0,
        ],
        abs=1e-12,
    )


def test_it_ends_at_the_minimum():
    training = section(min_learning_rate=0.4)
    assert rates(training, range(4, 13, 2)) == pytest.approx(
        [1.0, 0.4 + 0.6 * 0.8535533905932737, 0.7, 0.4 + 0.6 * 0.1464466094067262, 0.4]
    )


def test_without_warmup_it_begins_at_the_top():
    assert learning_rate(0, section(warmup_steps=0)) == 1.0
    assert learning_rate(12, section(warmup_steps=0)) == 0.0


@pytest.mark.parametrize("warmup", [12, 20])
def test_a_warmup_as_long_as_the_run(warmup):
    assert learning_rate(6, section(warmup_steps=warmup)) == pytest.approx(0.2 + 0.8 * 6 / warmup)
    assert learning_rate(warmup, section(warmup_steps=warmup)) == 1.0


def test_the_papers_run():
    training = TrainingSection(steps=60000, global_batch=128, micro_batch=16)
    assert learning_rate(0, training) == 1e-8
    assert learning_rate(500, training) == pytest.approx(5.005e-6)
    assert learning_rate(1000, training) == 1e-5
    assert learning_rate(30500, training) == pytest.approx(5e-6)
    assert learning_rate(60000, training) == 0.0
