"""Models: Module and its parts, layers, encoders (images -> h) and projection heads (h -> z)."""

from .encoders import MLP, ConvNet, Encoder, as_images
from .heads import HEADS, projection_head
from .layers import BatchNorm, Conv2d, Dropout, Embedding, LayerNorm, Linear, Sequential
from .module import Module
from .parts import Buffer, Counter, HostBuffer, Parameter, Stream
from .recurrent import GRU
from .resnet import ResNet9, ResNet18
from .spec import fresh
from .text import BagOfTokens, Transformer
from .words import WordTokenizer

__all__ = ["BagOfTokens", "BatchNorm", "Buffer", "Conv2d", "ConvNet", "Counter", "Dropout", "Embedding", "Encoder",
           "GRU", "HEADS", "HostBuffer", "LayerNorm", "Linear", "MLP", "Module", "Parameter", "ResNet18", "ResNet9",
           "Sequential", "Stream", "Transformer", "WordTokenizer", "as_images", "fresh",
           "projection_head"]
