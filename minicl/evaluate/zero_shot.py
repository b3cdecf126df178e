"""CLIP without further training: zero-shot classification by prompts, and retrieval between images and text.

Embeddings are arrays (N, d) of either backend and need not be normalised; results are Python floats. An embedding of
zeros has cosine 0 with every other.
"""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from ..backend import array_module, to_device, to_host
from ..checks import require_integers, require_ordered
from ..typing import Array, HostArray
from .checks import require_features, require_labels
from .scores import TIE, chosen, normalized, rounded_cosines


def class_embeddings(embed: Callable[[list[str]], Array], names: Sequence[str], templates: Sequence[str]) -> Array:
    """A unit vector for each class, (classes, d): a classifier made of text (Radford et al. 2021, section 3.1.4).

    embed      function: list of captions -> embeddings (captions, d)
    names      of the classes, each different; templates: captions with {} for the name, e.g. "a photo of a {}"

    Each prompt's embedding is normalised, so that all templates count equally. Their mean is normalised again: it is shorter
    where the templates disagree, and classes should not be compared by length.
    """
    require_ordered("class_embeddings", names=names, templates=templates)
    wrong = [] if isinstance(templates, str) else [one for one in templates if not isinstance(one, str) or "{}" not in one]
    if wrong or isinstance(templates, str) or not len(templates):
        raise ValueError("class_embeddings: expected templates to be a list of captions with {} for the name, got "
                         f"{wrong or templates!r}")
    if isinstance(names, str) or len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"class_embeddings: expected names to be a list of at least 2 different classes, got {names!r}")
    prompts = embed([template.replace("{}", str(name)) for name in names for template in templates])
    require_features("class_embeddings", prompts=prompts)
    if len(prompts) != len(names) * len(templates):
        raise ValueError(f"class_embeddings: embed must return one embedding per caption, {len(names) * len(templates)}, "
                         f"got {prompts.shape}")
    classes = normalized(normalized(prompts).reshape(len(names), len(templates), -1).mean(axis=1))
    return classes.astype(prompts.dtype, copy=False)


def zero_shot_accuracy(images: Array, classes: Array, labels: HostArray) -> float:
    """Fraction of image embeddings (N, d) that are most similar to their own class's embedding of (C, d), C >= 2.

    labels: integers (N,) from 0 to C - 1 on the host. A tie of n classes counts 1/n if the image's own is among them, so
    equal embeddings score 1/C, which is chance.

    >>> import numpy as np
    >>> zero_shot_accuracy(np.array([[2.0, 0.1], [0.3, 1], [1, 1]]), np.eye(2), np.array([0, 0, 1]))
    0.5
    """
    require_features("zero_shot_accuracy", images=images, classes=classes)
    if len(classes) < 2:
        raise ValueError(f"zero_shot_accuracy: expected class embeddings (C, d) of C >= 2 classes, got {classes.shape}")
    labels = require_labels("zero_shot_accuracy", "labels", labels, len(images), below=len(classes))
    scores = rounded_cosines(normalized(images), normalized(classes))                    # (N, C)
    scores = array_module(images).minimum(scores, scores.max(axis=1, keepdims=True) - TIE)
    return float(chosen(scores, to_device(labels, array_module(images))).mean())


def _repeated(images, caption_ids):
    """The number of rows of images that equal an earlier row of another caption; 0 if all rows are equal, as after a
    collapse."""
    first: dict[bytes, int] = {}
    repeated = sum(first.setdefault(row.tobytes(), caption) != caption for row, caption in zip(images, caption_ids.tolist()))
    return repeated if len(first) > 1 else 0


def retrieval_recall(images: Array, captions: Array, caption_ids: HostArray, *,
                     ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall at k in both directions: {"text_r1": ..., "image_r1": ..., ...}; text_: retrieve a caption for each image.

    images (N, d); captions (M, d), M >= 2, each different caption once; caption_ids (N,) on the host: image i's caption.

    A caption shared by several images is one candidate, and any of these images is correct for it, so repeated captions are
    neither errors nor extra chances. An image has one caption: if it is repeated with several, as in COCO's tables, each is
    an error for the others, and a warning is raised; take one caption an image.

    A query is a hit at k if fewer than k wrong candidates score at least as high as its best correct one: a model with equal
    embeddings scores 0 if there are k wrong candidates. With fewer than k wrong candidates R@k is 1 for any model.

    >>> import numpy as np
    >>> retrieval_recall(np.eye(3), np.eye(3)[[0, 2, 1]], np.array([0, 1, 2]), ks=[3])
    {'text_r3': 1.0, 'image_r3': 1.0}
    """
    require_features("retrieval_recall", images=images, captions=captions)
    xp = array_module(images)
    M = len(captions)
    caption_ids = require_labels("retrieval_recall", "caption_ids", caption_ids, len(images), below=M)
    if M < 2 or len(np.unique(caption_ids)) < M:
        raise ValueError(f"retrieval_recall: expected caption_ids to name each of at least 2 captions, got "
                         f"{len(np.unique(caption_ids))} different ids for {M} captions; leave out those without an image")
    if not isinstance(ks, Sequence) or isinstance(ks, (str, bytes)) or not ks:
        raise ValueError(f"retrieval_recall: ks must be a sequence of integers >= 1, got {ks!r}")
    for k in ks:
        require_integers("retrieval_recall", 1, **{"each of ks": k})
    if (repeated := _repeated(to_host(images), caption_ids)) > 0:
        warnings.warn(f"retrieval_recall: {repeated} rows of images repeat another row with another caption, and only one "
                      "of these captions counts as right for each; take one caption an image", stacklevel=2)
    similarity = rounded_cosines(normalized(images), normalized(captions))                                       # (N, M)
    right = to_device(caption_ids, xp)[:, None] == xp.arange(M)                          # (N, M)
    recalls = {}
    for name, s, r in (("text", similarity, right), ("image", similarity.T, right.T)):
        best = xp.where(r, s, -math.inf).max(axis=1, keepdims=True)
        wrong_before = ((s >= best - TIE) & ~r).sum(axis=1)
        recalls.update({f"{name}_r{k}": float((wrong_before < k).mean()) for k in ks})
    return recalls
