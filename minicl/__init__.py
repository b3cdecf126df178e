"""minicl: contrastive learning from scratch, every gradient on the page.

    backend      NumPy or CuPy           autograd     Tensor, @op, the tape
    ops          differentiable ops      contrastive  cosine, temperature softmax, InfoNCE, NT-Xent
    nn, optim    models and optimizers   data         MNIST, generated digits, augmentations
    evaluate     kNN, linear probe, geometry, the information bound
    gradcheck    finite differences      run          what the training scripts share
"""

from . import ops
from .autograd import Tensor, no_grad, op
from .backend import BackendError, get_backend
from .gradcheck import GradcheckError, gradcheck

__version__ = "0.1.0"
__all__ = ["BackendError", "GradcheckError", "Tensor", "get_backend", "gradcheck", "no_grad", "op", "ops"]
