"""Training: the trainer, its step, its optimiser and its hooks."""

from phoenix_d2.engine.trainer import Trainer

__all__ = ["Trainer"]
