"""What a CLIP can do with no further training: classify by prompts, and find images by text and text by images.

Embeddings are arrays (N, d) of either backend and need not be normalised; results are Python floats.
"""

import numpy as np

from ..backend import array_module, to_device
from ..contrastive.cosine import l2_normalize
from .features import require_features


def class_embeddings(embed, names, templates):
    """One unit vector a class, (classes, d): the classifier that language gives (Radford et al. 2021, section 3.1.4).

    embed      function: list of captions -> embeddings (captions, d)
    names      of the classes; templates: captions with {} for the name, e.g. "a photo of a {}", or "{}" alone

    Each prompt's embedding is normalised, so that all templates count alike; their mean is shorter than 1, by more
    where the templates disagree, so it is normalised again: otherwise classes would be compared by length as well.
    """
    wrong = [template for template in templates if "{}" not in template]
    if wrong or not templates or isinstance(templates, str):
        raise ValueError("class_embeddings: expected a list of templates with {} for the name, got "
                         f"{wrong or templates!r}")
    prompts = l2_normalize.forward(embed([template.format(name) for name in names for template in templates]))[0]
    return l2_normalize.forward(prompts.reshape(len(names), len(templates), -1).mean(axis=1))[0]


def zero_shot_accuracy(images, classes, labels):
    """Fraction of image embeddings (N, d) that are most similar to their own of the class embeddings (classes, d).

    labels: integers (N,) on the host. No image needs to be normalised: its length is common to all its scores.
    """
    require_features("zero_shot_accuracy", (images, labels))
    if classes.ndim != 2 or classes.shape[1] != images.shape[1] or labels.max() >= len(classes):
        raise ValueError(f"zero_shot_accuracy: expected class embeddings (C, {images.shape[1]}), C > {labels.max()}, "
                         f"got {classes.shape}")
    predicted = (images @ l2_normalize.forward(classes)[0].T).argmax(axis=1)
    return float((predicted == to_device(labels, array_module(images))).mean())


def retrieval_recall(images, captions, caption_ids, *, ks=(1, 5, 10)):
    """R@k both ways: {"text_r1": ..., "image_r1": ..., ...}, fractions; text_: a caption is sought for each image.

    images (N, d); captions (M, d), each different caption once; caption_ids (N,) on the host: which is image i's.

    A caption that several images share is one candidate, not several, and any of its images is right for it: so
    repeated captions are neither mistakes nor extra chances. A query is a hit at k if fewer than k wrong candidates
    score at least as much as its best right one: a model that gives everything the same embedding scores 0.
    """
    require_features("retrieval_recall", (images, caption_ids))
    xp, n = array_module(images), len(captions)
    if caption_ids.max() >= n or len(np.unique(caption_ids)) < n:
        raise ValueError(f"retrieval_recall: expected caption_ids to name each of the {n} captions and no other, got "
                         f"{len(np.unique(caption_ids))} different ids up to {caption_ids.max()}")
    similarity = l2_normalize.forward(images)[0] @ l2_normalize.forward(captions)[0].T           # (N, M)
    right = to_device(caption_ids, xp)[:, None] == xp.arange(n)                          # (N, M)
    recalls = {}
    for name, s, r in (("text", similarity, right), ("image", similarity.T, right.T)):
        best = xp.where(r, s, -2).max(axis=1, keepdims=True)
        wrong_before = ((s >= best) & ~r).sum(axis=1)
        recalls.update({f"{name}_r{k}": float((wrong_before < k).mean()) for k in ks})
    return recalls
