"""Checkpoints: what a model's headers say, and rows of its weights as float32."""

from ggufround.checkpoint.opening import open_checkpoint
from ggufround.checkpoint.reading import Reader
from ggufround.checkpoint.spec import Checkpoint, TensorRef

__all__ = ["Checkpoint", "Reader", "TensorRef", "open_checkpoint"]
