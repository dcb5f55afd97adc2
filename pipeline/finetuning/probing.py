"""The linear probe that `lp-ft` and `interpolate` start from.

Source: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022.
"""

from __future__ import annotations

import numpy as np

from ..backbones import Backbone, Embedder, TorchEngine
from ..data import Dataset
from ..errors import DataError
from ..heads import make_head
from ..progress import Progress, silent
from .outcome import features_of, labelled

UNSEEN = -10.0  # the score of a class without training images lies this far below the others'


def solve_probe(
    dataset: Dataset, backbone: Backbone, device: str, workers: int, progress: Progress = silent
) -> tuple[np.ndarray, np.ndarray]:
    """Solve logistic regression on the frozen features of the training images.

    Returns
    -------
    (K, D) array, (K,) array
        Weight and bias for raw features.
    """
    embedder = Embedder(TorchEngine(backbone, device), workers=workers or None)
    indices = labelled(dataset, "train")
    with progress(total=len(indices), desc="probe", unit="image") as bar:
        readable, rows, _ = features_of(embedder, backbone, dataset, indices, bar.update)
    labels = dataset.labels[readable]
    if len(np.unique(labels)) < 2:
        raise DataError(f"The readable training images in {dataset.root} are of one class; two are needed.")
    return linear_part(make_head("logistic").fit(rows, labels), len(dataset.classes))


def linear_part(head, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a linear head's weight (K, D) and bias (K,) for raw features, one row for each of K class ids.

    Parameters
    ----------
    head : LinearModel
        Fitted on class ids; its `coef_` and `intercept_` are for raw features.
    classes : int
        K. Classes that the head never saw get a score that always loses.
    """
    weight = np.zeros((classes, head.coef_.shape[1]))
    bias = np.full(classes, float(head.intercept_.min()) + UNSEEN)
    weight[head.classes_] = head.coef_
    bias[head.classes_] = head.intercept_
    return weight, bias
