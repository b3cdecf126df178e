"""Evaluation of frozen representations: kNN, linear probe, geometry on the sphere, the information bound."""

from .features import encode, state_hash, to_float
from .frozen import frozen_accuracies, pixel_accuracy
from .geometry import alignment, effective_rank, embedding_std, uniformity, uniformity_floor
from .information import (Bound, draw_gaussians, gaussian_correlation, gaussian_information, infonce_bound,
                          log_density_ratio, optimal_bound, pairs_bound, symbol_estimates)
from .knn import knn_accuracy, nearest_neighbours
from .probe import linear_probe
from .report import final_loss, report
from .tsne import tsne
from .zero_shot import class_embeddings, retrieval_recall, zero_shot_accuracy

__all__ = ["Bound", "alignment", "class_embeddings", "draw_gaussians", "effective_rank", "embedding_std", "encode",
           "final_loss", "frozen_accuracies", "gaussian_correlation", "gaussian_information", "infonce_bound",
           "knn_accuracy", "linear_probe", "log_density_ratio", "nearest_neighbours", "optimal_bound", "pairs_bound",
           "pixel_accuracy", "report", "retrieval_recall", "state_hash", "symbol_estimates", "to_float", "tsne",
           "uniformity", "uniformity_floor", "zero_shot_accuracy"]
