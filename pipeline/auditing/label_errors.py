"""Which labels to look at, because the features say something else."""

from __future__ import annotations

import warnings

import numpy as np

from ..core.progress import Progress, silent

FOLDS = 5


def out_of_fold(
    rows: np.ndarray, labels: np.ndarray, together: np.ndarray, n_classes: int, seed: int = 0,
    progress: Progress = silent,
) -> np.ndarray | None:
    """Return what logistic regression says of each image that it was not trained on.

    Parameters
    ----------
    rows : (N, D) array
    labels : (N,) int array
    together : (N,) int array
        Images with the same number share a fold: a copy would confirm its own wrong label.
    n_classes : int
        K.
    seed : int
        Of the folds.
    progress : Progress

    Returns
    -------
    (N, K) array of probabilities, or None
        None where some class cannot be held out and learned at once.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    from ..heads import make_head, probabilities

    present, sizes = np.unique(labels, return_counts=True)
    folds = min(FOLDS, int(sizes.min(initial=FOLDS)), len(np.unique(together)))
    if len(present) < 2 or folds < 2:
        return None
    found = np.zeros((len(rows), n_classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of small classes, which the line above allows for
        splits = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(rows, labels, together))
    with progress(total=len(splits), desc="Checking labels", unit="fold") as bar:
        for train, held_out in splits:
            if len(np.unique(labels[train])) < 2:
                return None
            head = make_head("logistic").fit(rows[train], labels[train])
            found[held_out] = probabilities(head, rows[held_out], n_classes)
            bar.update()
    return found


def label_errors(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the positions of labels to look at, the most doubtful first.

    Confident learning: a class claims an image if its probability reaches the mean that images labelled so get.
    How many images labelled k another class j claims estimates how many of them are j; as many are in doubt, those
    that j's probability exceeds k's by most. An image that is predicted as labelled is never in doubt.

    Source: Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 2021,
    its "prune by noise rate". Tested against cleanlab's `find_label_issues`: the same images for two classes,
    nearly the same for more.

    Parameters
    ----------
    labels : (N,) int array
    probabilities : (N, K) array
        Of a model that was not trained on the row.
    """
    own = probabilities[np.arange(len(labels)), labels]
    expected, doubtful = _expected_errors(labels, probabilities), np.zeros(len(labels), bool)
    for given, actual in zip(*np.nonzero(expected), strict=True):
        rows = np.flatnonzero(labels == given)
        margin = probabilities[rows, actual] - own[rows]
        doubtful[rows[np.argsort(-margin, kind="stable")[: expected[given, actual]]]] = True
    positions = np.flatnonzero(doubtful & (probabilities.argmax(axis=1) != labels))
    return positions[np.argsort(own[positions], kind="stable")]


def _expected_errors(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the (K, K) estimate of how many images labelled k (row) are of class j; 0 on the diagonal."""
    n_classes, sizes = probabilities.shape[1], np.bincount(labels, minlength=probabilities.shape[1])
    own = probabilities[np.arange(len(labels)), labels]
    thresholds = np.where(sizes > 0, np.bincount(labels, own, n_classes) / np.maximum(sizes, 1), np.inf)
    claims = probabilities >= thresholds - 1e-6
    claimed = np.where(claims, probabilities, -1).argmax(axis=1)
    some = claims.any(axis=1)
    joint = np.bincount(labels[some] * n_classes + claimed[some], minlength=n_classes**2).reshape(n_classes, n_classes)
    np.fill_diagonal(joint, np.maximum(joint.diagonal(), 1))
    # images that no class claims are shared out as the others of their label
    expected = _rounded(joint / joint.sum(axis=1, keepdims=True) * sizes[:, None])
    np.fill_diagonal(expected, 0)
    return np.minimum(expected, np.maximum(sizes - 1, 0)[:, None])


def _rounded(counts: np.ndarray) -> np.ndarray:
    """Return whole numbers with the same sums of rows: those that rounding wronged most give way."""
    whole = np.rint(counts)
    for row, short in enumerate(np.rint(counts.sum(axis=1) - whole.sum(axis=1)).astype(int).tolist()):
        step = 1 if short > 0 else -1
        most = np.argsort(step * (whole[row] - counts[row]), kind="stable")[: abs(short)]
        whole[row, most] += step
    return whole.astype(int)
