"""The learning rate as a function of the step, never of history."""

import math

from ibtrain.config import TrainingSection


def learning_rate(step: int, training: TrainingSection) -> float:
    """The rate of step `step` (counted from 0): linear warm-up, then cosine to the minimum.

    Warm-up goes from `warmup_start` to `learning_rate` over `warmup_steps`; the cosine reaches
    `min_learning_rate` at the last step (paper, section 3; LAVIS's staircase is not repeated).
    """
    if step < training.warmup_steps:
        share = step / training.warmup_steps
        return training.warmup_start + share * (training.learning_rate - training.warmup_start)
    span = max(1, training.steps - training.warmup_steps)
    share = min(1.0, (step - training.warmup_steps) / span)
    height = training.learning_rate - training.min_learning_rate
    return training.min_learning_rate + 0.5 * height * (1.0 + math.cos(math.pi * share))
