"""The linear probe: how much of the classes a linear classifier can read off frozen features."""

import numpy as np

from ..autograd import Tensor, no_grad
from ..backend import array_module, to_device, to_host
from ..contrastive.softmax import log_softmax
from ..nn import Linear, Sequential
from ..nn.layers import RELU_GAIN
from ..ops import relu
from ..optim import AdamW, warmup_cosine
from .features import require_features


def linear_probe(train_features, train_labels, test_features, test_labels, *, epochs=20, batch=500, lr=1e-2,
                 weight_decay=0.3, seed=0, hidden=None):
    """Test accuracy, a fraction, of a linear classifier trained by cross-entropy on fixed features (N, d).

    Features are standardised by the training set's mean and deviation. They are arrays, off any tape: nothing
    flows back into the encoder that made them. labels: integer arrays (N,) on the host.

    hidden  None; or so many relu units before the classifier: an MLP, for what can be read off at all
    """
    require_features("linear_probe", (train_features, train_labels), (test_features, test_labels))
    xp, rng = array_module(train_features), np.random.default_rng(seed)
    mean, deviation = train_features.mean(axis=0), train_features.std(axis=0) + 1e-6
    x, x_test = (train_features - mean) / deviation, (test_features - mean) / deviation
    labels = to_device(train_labels, xp)
    n, batch = len(x), min(batch, len(x))
    layers = [Linear(x.shape[1], hidden, rng=rng, gain=RELU_GAIN), relu] if hidden else []
    classifier = Sequential(*layers, Linear(hidden or x.shape[1], int(train_labels.max()) + 1, rng=rng))
    classifier = classifier.to(xp).astype(x.dtype)
    optimizer = AdamW(classifier, lr, weight_decay=weight_decay)
    rows, total = xp.arange(batch), epochs * (n // batch)
    for epoch in range(epochs):
        order = to_device(rng.permutation(n), xp)
        for k in range(n // batch):
            ids = order[k * batch:(k + 1) * batch]
            loss = -log_softmax(classifier(Tensor(x[ids])))[rows, labels[ids]].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(warmup_cosine(optimizer.steps, total=total, peak=lr))
    with no_grad():
        predicted = to_host(classifier(Tensor(x_test)).data.argmax(axis=1))
    return float((predicted == test_labels).mean())
