"""minicl: contrastive learning from scratch, every gradient on the page.

    backend      NumPy or CuPy           autograd     Tensor, @op, the tape
    ops          differentiable ops      contrastive  cosine, temperature softmax, InfoNCE, NT-Xent
    nn, optim    models and optimizers   data         MNIST, generated digits, augmentations
    evaluate     kNN, linear probe, geometry, the information bound
    gradcheck    finite differences      explain      the tape op by op; push and pull of a contrastive loss
    methods      SimCLR, MoCo, CLIP...   run          what the training scripts share
"""

from . import ops
from .autograd import Tensor, no_grad, op
from .backend import BackendError, get_backend
from .explain import explain
from .explain_pairs import explain_pairs
from .gradcheck import GradcheckError, gradcheck
from .signature import Index, Mask, Scalar

__version__ = "0.1.0"
__all__ = ["BackendError", "GradcheckError", "Index", "Mask", "Scalar", "Tensor", "explain", "explain_pairs", "get_backend", "gradcheck", "no_grad",
           "op", "ops"]
