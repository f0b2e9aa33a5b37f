"""What requests should cost on paper: a checkpoint's sizes, its FLOPs and bytes."""

from loadtest.cost.checkpoint import describe_checkpoint
from loadtest.cost.model import Decoder, ModelCost, Tower

__all__ = ["Decoder", "ModelCost", "Tower", "describe_checkpoint"]
