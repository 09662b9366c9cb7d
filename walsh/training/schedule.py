"""Learning rate and weight decay by step.

    warm-up:    eta(t) = t / warmup                                                  for t < warmup
    cosine:     eta(t) = m + (1 - m) (1 + cos(pi p)) / 2,  p from 0 to 1 after it
    two_stage:  a line from 1 to 0 over all steps; from ``second_stage`` on a second line, which starts at
                ``second_peak`` and ends at m, without weight decay (Ma et al., *The Era of 1-bit LLMs: Training Tips*)

All times the peak learning rate.
"""

from __future__ import annotations

import math

from walsh.training.config import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The learning rate of a step as a fraction of its peak.

    Args:
        schedule: its form.
        step: 0 for the first optimizer step.
        steps: of the whole run.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    after = steps - schedule.warmup_steps
    progress = min((step - schedule.warmup_steps) / max(after, 1), 1.0)
    if schedule.kind == "cosine":
        return schedule.minimum + (1.0 - schedule.minimum) * 0.5 * (1.0 + math.cos(math.pi * progress))
    if progress < schedule.second_stage:
        return 1.0 - progress
    rest = (progress - schedule.second_stage) / (1.0 - schedule.second_stage)
    return schedule.second_peak + (schedule.minimum - schedule.second_peak) * rest


def decays(schedule: ScheduleConfig, step: int, steps: int) -> bool:
    """Whether weights decay at this step: always, but not in the second of two stages."""
    progress = (step - schedule.warmup_steps) / max(steps - schedule.warmup_steps, 1)
    return schedule.kind != "two_stage" or progress < schedule.second_stage
