"""The `ridge` head: least squares on class indicators, every penalty and leave-one-out from one decomposition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..core.errors import HeadError
from .base import ClassWeight, LinearModel
from .rows import StreamedRows, map_rows, sum_rows
from .scores import fit_temperature, sample_for_temperature

IMAGE_ROWS = 1024  # rows at a time of images with several views
ALPHAS = tuple(float(alpha) for alpha in 10.0 ** np.arange(-2, 7.01, 0.5))


class RidgeHead(LinearModel):
    """Ridge regression on targets 1 (own class) and -1 (others); its penalty chosen by leaving each row out.

    Parameters
    ----------
    alpha : float, sequence of float, or 'loo'
        Penalty as in scikit-learn's Ridge, on scaled features. Of several the one with the smallest
        leave-one-out squared error is taken; 'loo' chooses from 19 log steps, 0.01 to 1e7.
    scaling : str
        Feature scaling, one of `SCALINGS`.
    class_weight : 'balanced', dict or None
        Weight of each class in the squared error.

    Attributes
    ----------
    alpha_ : float
        The penalty used.
    alphas_, loo_errors_, loo_accuracies_ : (A,) float64 arrays
        The path: every penalty tried, its leave-one-out squared error and accuracy.
    """

    streams = squares = threads = True

    def __init__(self, alpha: float | str | tuple[float, ...] = "loo", scaling: str = "none",
                 class_weight: ClassWeight = None):
        self.alpha = alpha
        self.scaling = scaling
        self.class_weight = class_weight

    def _fit(self, Z: np.ndarray | StreamedRows, codes: np.ndarray, validation: object) -> None:
        self.alphas_ = self._alphas()
        # so that alpha weighs an image, however many views it has
        weights = self._class_weights(codes)[codes] / self.views_
        problem = RidgeProblem(Z, codes, weights, len(self.classes_))
        used = sample_for_temperature(len(codes), len(self.classes_))
        used &= np.arange(len(codes)) % self.views_ == 0  # for plain images
        if self.views_ == 1:
            levers = problem.levers(self.alphas_)
            best = self._chosen(problem, problem.left_out(self.alphas_, levers))
            left = np.concatenate(list(problem.left_out(self.alphas_[[best]], levers[:, [best]], used)))
        else:
            best = self._chosen(problem, problem.left_out_images(self.alphas_, self.views_))
            left = np.concatenate(list(problem.left_out_images(self.alphas_[[best]], self.views_)))[used]
        self.alpha_ = float(self.alphas_[best])
        if len(self.alphas_) > 1:
            self.selection_ = "cv"
            self.choice_ = {"settings": {"alpha": self.alpha_}, "candidates": len(self.alphas_), "rule": "best",
                            "metric": "squared_error", "on": "cv", "folds": len(codes) // self.views_}
        self.temperature_ = fit_temperature(left[:, 0], codes[used])
        self._keep(*problem.solve(self.alpha_))

    def _chosen(self, problem: RidgeProblem, pieces: Iterator[np.ndarray]) -> int:
        """Note the squared error and the accuracy of left-out rows for each penalty; return the best one's place."""
        errors, right, start = np.zeros(len(self.alphas_)), np.zeros(len(self.alphas_)), 0
        for left in pieces:
            codes, weights = (each[start : start + len(left)] for each in (problem.codes, problem.weights))
            right += (left.argmax(axis=2) == codes[:, None]).sum(axis=0)
            errors += weights @ np.square(left - indicators(codes, problem.n_classes)[:, None]).sum(axis=2)
            start += len(left)
        self.loo_errors_, self.loo_accuracies_ = errors / problem.weights.sum(), right / start
        return int(self.loo_errors_.argmin())

    def _alphas(self) -> np.ndarray:
        if isinstance(self.alpha, str) and self.alpha != "loo":
            raise HeadError(f"alpha is {self.alpha!r}; it must be a number, several, or 'loo'.")
        alphas = np.atleast_1d(np.asarray(ALPHAS if isinstance(self.alpha, str) else self.alpha, np.float64))
        if alphas.ndim != 1 or not len(alphas) or not (alphas > 0).all():
            raise HeadError(f"alpha is {self.alpha!r}; penalties must be above 0.")
        return alphas


def indicators(codes: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the (N, K) float64 targets: 1 in the column of a row's class, -1 elsewhere."""
    targets = np.full((len(codes), n_classes), -1.0)
    targets[np.arange(len(codes)), codes] = 1
    return targets


class RidgeProblem:
    """Weighted ridge regression on targets 1 and -1 with free intercepts, solved for any penalty from one
    eigendecomposition.

    Parameters
    ----------
    Z : (N, D) array or StreamedRows
        Scaled features.
    codes : (N,) int array
        Classes 0 to K - 1.
    weights : (N,) array
        Of the rows.
    n_classes : int
        K.
    """

    def __init__(self, Z: np.ndarray | StreamedRows, codes: np.ndarray, weights: np.ndarray, n_classes: int):
        self.Z, self.codes, self.weights, self.n_classes = Z, codes, weights, n_classes
        total = weights.sum()
        self.center = sum_rows(lambda rows, own: own @ rows.astype(np.float64), Z, weights) / total
        self.level = 2 * np.bincount(codes, weights, n_classes) / total - 1
        self.dual = False
        if isinstance(Z, np.ndarray) and len(Z) < Z.shape[1]:
            self.dual = True
            centered, targets = self._centered(Z, codes, weights)
            values, self.U = np.linalg.eigh(centered @ centered.T)
            self.axes = centered.T @ self.U  # (D, N), to be divided by the values
            self.rotated = self.U.T @ targets
        else:
            gram, product = np.zeros((Z.shape[1], Z.shape[1])), np.zeros((Z.shape[1], n_classes))
            for own_gram, own_product in map_rows(self._products, Z, codes, weights):
                gram += own_gram
                product += own_product
            values, self.axes = np.linalg.eigh(gram)
            self.rotated = self.axes.T @ product
        self.values = np.maximum(values, 0)

    def solve(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the (K, D) coefficients and (K,) intercepts for the penalty `alpha`."""
        coef = (self.axes @ (self.rotated / (self.values + alpha)[:, None])).T
        return coef, self.level - coef @ self.center

    def levers(self, alphas: np.ndarray) -> np.ndarray:
        """Return the (N, A) share of each row in its own prediction, for each penalty."""
        shrunk = (self.values[:, None] if self.dual else 1) / (self.values[:, None] + alphas)
        if self.dual:
            own = np.square(self.U) @ shrunk
        else:
            own = np.concatenate(list(map_rows(lambda *part: self._levers(shrunk, *part), self.Z, self.codes,
                                               self.weights)))
        return own + (self.weights / self.weights.sum())[:, None]  # the intercept's part

    def left_out(self, alphas: np.ndarray, levers: np.ndarray, used: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Yield, piece by piece, the (n, A, K) predictions for each row by the models fitted on all others, exactly.

        Parameters
        ----------
        alphas : (A,) array
        levers : (N, A) array
            From `levers`.
        used : (N,) bool array, optional
            The rows to predict; by default all.
        """
        solved = [self.solve(alpha) for alpha in alphas]
        coef, intercept = np.concatenate([coef for coef, _ in solved]), np.stack([level for _, level in solved])

        def piece(rows: np.ndarray, codes: np.ndarray, lever: np.ndarray, used: np.ndarray) -> np.ndarray:
            rows, lever = rows[used].astype(np.float64), lever[used, :, None]
            fitted = (rows @ coef.T).reshape(len(rows), *intercept.shape) + intercept
            targets = indicators(codes[used], self.n_classes)[:, None]
            return targets - (targets - fitted) / np.maximum(1 - lever, 1e-12)

        yield from map_rows(piece, self.Z, self.codes, levers, np.ones(len(self.codes), bool) if used is None else used)

    def left_out_images(self, alphas: np.ndarray, views: int) -> Iterator[np.ndarray]:
        """Yield, piece by piece, the (n, A, K) predictions for each row by the models fitted on all other images.

        Of `views` neighbouring rows an image; exactly, from the blocks of the hat matrix that belong to one image.
        """
        assert isinstance(self.Z, np.ndarray)
        step = views * max(1, IMAGE_ROWS // views)
        for start in range(0, len(self.codes), step):
            part = slice(start, start + step)
            centered, targets = self._centered(self.Z[part], self.codes[part], self.weights[part])
            U = (self.U[part] if self.dual else centered @ self.axes).reshape(-1, views, len(self.values))
            root = np.sqrt(self.weights[part]).reshape(-1, views, 1)
            of_intercept = root @ root.transpose(0, 2, 1) / self.weights.sum()
            found = []
            for alpha in alphas:
                shrunk = (self.values if self.dual else 1) / (self.values + alpha)
                residual = targets.reshape(len(U), views, -1) - U @ (self.rotated * shrunk[:, None])
                # a row that decides its own prediction alone would make this singular
                others = (1 + 1e-12) * np.eye(views) - (U * shrunk) @ U.transpose(0, 2, 1) - of_intercept
                found.append((np.linalg.solve(others, residual) / root).reshape(-1, self.n_classes))
            yield indicators(self.codes[part], self.n_classes)[:, None] - np.stack(found, axis=1)

    def _centered(self, Z: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        root = np.sqrt(weights)[:, None]
        return (Z - self.center) * root, (indicators(codes, self.n_classes) - self.level) * root

    def _products(self, Z: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centered, targets = self._centered(Z, codes, weights)
        return centered.T @ centered, centered.T @ targets

    def _levers(self, shrunk: np.ndarray, Z: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        axes = self.axes.astype(Z.dtype)  # the longest of all products; nothing is subtracted in it, so float32 will do
        return np.square(self._centered(Z, codes, weights)[0].astype(Z.dtype) @ axes) @ shrunk.astype(Z.dtype)
