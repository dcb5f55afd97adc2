"""The penalty paths of all folds of a cross-validation, walked side by side over rows that they share.

A product of rows with ten columns takes nearly the time of one with fifty, because it waits for memory. Five folds
share four fifths of their rows, so each pass over all rows serves every fold: a fold leaves out its own by weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .losses import Loss
from .penalty_path import BEND_ROWS, MOST, PenaltyPath, Solution, Stop, eigenvectors, mean_bend
from .scaling import Scaler, fit_scaler
from .solver import penalty_factor
from .threads import map_rows, sum_rows


class FoldPaths:
    """Rows that the training sets of several folds share.

    Parameters
    ----------
    X : (N, D) array
        Raw features.
    codes : (N,) int array
        Classes 0 to K - 1; every fold trains on all of them.
    weights : (F, N) array
        Of the rows in each fold's training, 0 for those left out.
    scalers : sequence of Scaler
        Each fold's own; of kind none, standardize or l2.
    n_classes : int
        K.
    loss : Loss
    """

    def __init__(self, X: np.ndarray, codes: np.ndarray, weights: np.ndarray, scalers: Sequence[Scaler],
                 n_classes: int, loss: Loss):
        self.codes, self.n_classes, self.loss = codes, n_classes, loss
        self.totals = weights.sum(axis=1)
        self.weights = np.ascontiguousarray((weights / self.totals[:, None]).T)  # (N, F), of sum 1
        common = fit_scaler(scalers[0].kind, X)
        Z = common(X)
        self.mean = sum_rows(lambda rows: rows.sum(axis=0, dtype=np.float64), Z) / len(Z)
        self.Z = Z - self.mean.astype(Z.dtype)
        self.factors, self.shifts = _between(common, scalers, X.shape[1])
        gram = sum_rows(lambda rows: rows.T @ rows, self.Z).astype(np.float64) / len(Z)
        self.squares, self.axes = eigenvectors(gram.astype(self.Z.dtype))

    def walk(self, Cs: Sequence[Sequence[float]], max_iter: int = MOST) -> Iterator[tuple[int, Solution]]:
        """Yield (fold, solution) for each fold's inverse penalties, each fold's in the ascending order given."""
        paths = {fold: self._path(fold, max_iter) for fold, own in enumerate(Cs) if len(own)}
        steps = {fold: path.steps(Cs[fold]) for fold, path in paths.items()}
        asked = {fold: next(own) for fold, own in steps.items()}
        while asked:
            for fold in list(asked):
                while isinstance(stop := asked[fold], Stop):
                    yield fold, self._outward(fold, paths[fold].place, stop)
                    if (following := next(steps[fold], None)) is None:
                        del asked[fold]
                        break
                    asked[fold] = following
            if asked:
                places = [place for place in asked.values() if isinstance(place, np.ndarray)]
                values = self._slopes(list(asked), np.stack(places))
                asked = {fold: steps[fold].send(own) for fold, own in zip(asked, values, strict=True)}

    def _path(self, fold: int, max_iter: int) -> PenaltyPath:
        total = float(self.totals[fold])
        return PenaltyPath(self.squares, self.n_classes,
                           lambda C: penalty_factor(self.loss, self.n_classes, C * total),
                           lambda W: self._bend(fold, W), max_iter)

    def _inward(self, folds: Sequence[int], W: np.ndarray) -> np.ndarray:
        """Return coefficients (A, K, D) for the shared rows, of those in the paths' coordinates."""
        flat = W[:, :, :-1].reshape(-1, len(self.axes)) @ self.axes.T  # one product: several would be slower
        return flat.reshape(len(W), self.n_classes, -1) * self.factors[folds][:, None]

    def _outward(self, fold: int, place: np.ndarray, stop: Stop) -> Solution:
        coef = (place[:, :-1] @ self.axes.T).astype(np.float64)
        intercept = place[:, -1] - coef @ (self.factors[fold] * self.mean + self.shifts[fold])
        return Solution(coef, intercept, stop.iterations, stop.reached)

    def _bend(self, fold: int, W: np.ndarray) -> float:
        rows = np.flatnonzero(self.weights[:, fold])
        rows = rows[:: max(1, len(rows) // BEND_ROWS)]
        scores = (self.Z[rows] @ self._inward([fold], W[None])[0].T).astype(np.float64) + W[:, -1]
        return mean_bend(self.loss, scores, self.codes[rows], self.weights[rows, fold])

    def _slopes(self, folds: list[int], W: np.ndarray) -> list[tuple[float, np.ndarray]]:
        """Return the mean loss and its derivatives at W (A, K, D + 1) for each of A folds; one walk over the rows."""
        flat = np.ascontiguousarray(self._inward(folds, W).reshape(-1, self.Z.shape[1]))
        free = W[:, :, -1:].astype(np.float64)

        def piece(Z: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            scores = np.ascontiguousarray((Z @ flat.T).T).reshape(*free.shape[:2], len(Z)) + free
            losses = np.array([self.loss.slope(own[None], codes, weights[:, fold])[0]
                               for own, fold in zip(scores, folds, strict=True)])
            across = scores.astype(Z.dtype)  # the loss has put its derivative there
            return losses, across.reshape(len(flat), -1) @ Z, scores.sum(axis=2)

        parts = list(map_rows(piece, self.Z, self.codes, self.weights))
        losses, inner, steepness = (sum(part[which] for part in parts) for which in range(3))
        inner = inner.reshape(len(folds), self.n_classes, -1) * self.factors[folds][:, None]
        inner = (inner.reshape(len(flat), -1) @ self.axes).reshape(inner.shape)
        slopes = np.concatenate([inner, steepness[:, :, None]], axis=2).astype(W.dtype)
        return list(zip(losses.tolist(), slopes, strict=True))


def _between(common: Scaler, scalers: Sequence[Scaler], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each fold's (F, D) factors and shifts that turn commonly scaled rows into its own."""
    if common.center is None or common.scale is None:
        return np.ones((len(scalers), width), np.float32), np.zeros((len(scalers), width))
    scales = np.stack([own.scale for own in scalers if own.scale is not None])
    shifts = (common.center - np.stack([own.center for own in scalers if own.center is not None])) * scales
    return (scales / common.scale).astype(np.float32), shifts
