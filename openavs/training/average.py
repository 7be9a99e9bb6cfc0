"""Exponential moving average of a student's weights, the teacher of "Mean teachers" (arXiv 1703.01780)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from openavs.training.base import Student


class WeightAverage:
    """Average of the weights after each step, which is validated and saved in their place.

    Args:
        student: the student, whose weights are its start.
        decay: share of the average that a step keeps. It is at most `(1 + step) / (10 + step)`, so that the share of
            the random weights of the start falls fast.
    """

    def __init__(self, student: Student, decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}

    @torch.no_grad()
    def update(self, student: Student, step: int) -> None:
        """Include the weights after a step (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in student.state_dict().items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor, 1.0 - decay)
            else:  # counters
                self.weights[name].copy_(tensor)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take the average of a checkpoint."""
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])

    @contextmanager
    def applied(self, student: Student) -> Iterator[None]:
        """Give the student the average within the context."""
        own = {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
        student.load_state_dict(self.weights, strict=False)
        try:
            yield
        finally:
            student.load_state_dict(own, strict=False)
