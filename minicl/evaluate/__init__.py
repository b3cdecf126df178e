"""Evaluation of frozen representations: kNN, linear probe, geometry on the sphere, the information bound."""

from .features import encode, state_hash, to_float
from .frozen import frozen_accuracies, pixel_accuracy, training_metrics
from .geometry import alignment, effective_rank, embedding_std, uniformity, uniformity_floor
from .information import Bound, infonce_bound
from .knn import knn_accuracy, nearest_neighbours
from .probe import linear_probe
from .report import final_loss, report
from .tsne import tsne
from .zero_shot import class_embeddings, retrieval_recall, zero_shot_accuracy

__all__ = ["Bound", "alignment", "class_embeddings", "effective_rank", "embedding_std", "encode", "final_loss",
           "frozen_accuracies", "infonce_bound", "knn_accuracy", "linear_probe", "nearest_neighbours", "pixel_accuracy",
           "report", "retrieval_recall", "state_hash", "to_float", "training_metrics", "tsne", "uniformity",
           "uniformity_floor", "zero_shot_accuracy"]
