"""Evaluation of frozen representations: kNN, linear probe, geometry on the sphere, the information bound."""

from .features import encode, state_hash, to_float
from .frozen import frozen_accuracies
from .geometry import alignment, effective_rank, uniformity, uniformity_floor
from .information import Bound, infonce_bound
from .knn import knn_accuracy, nearest_neighbours
from .probe import linear_probe
from .tsne import tsne

__all__ = ["Bound", "alignment", "effective_rank", "encode", "frozen_accuracies", "infonce_bound", "knn_accuracy", "linear_probe",
           "nearest_neighbours", "state_hash", "to_float", "tsne", "uniformity", "uniformity_floor"]
