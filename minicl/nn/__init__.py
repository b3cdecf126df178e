"""Models: Module and its parts, layers, encoders that give h, projection heads that give z."""

from .encoders import MLP, ConvNet
from .heads import HEADS, projection_head
from .layers import BatchNorm, Conv2d, Dropout, Embedding, LayerNorm, Linear, Sequential
from .module import Buffer, Module, Parameter

__all__ = ["BatchNorm", "Buffer", "Conv2d", "ConvNet", "Dropout", "Embedding", "HEADS", "LayerNorm", "Linear", "MLP",
           "Module", "Parameter", "Sequential", "projection_head"]
