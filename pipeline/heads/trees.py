"""Heads of decision trees, `random-forest` and `hist-gradient-boosting`: grown by scikit-learn, kept as plain arrays.

Arrays rather than scikit-learn's objects, because they can be stored without pickle, checked completely when they
are loaded, and read by any later version.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.errors import HeadError
from .base import ClassWeight, Head
from .scaling import chunks

BLOCK_VALUES = 1_000_000  # positions (rows x trees) walked at a time


class TreesHead(Head):
    """A head whose scores are sums over decision trees.

    Attributes
    ----------
    roots_ : (T,) int64 array
        Each tree's first node, as an index into the arrays below.
    left_, right_ : (M,) int64 arrays
        Next node for a feature at most, or above, the threshold; always further down the array; -1 in a leaf.
    feature_ : (M,) int64 array
    threshold_ : (M,) float64 array
    """

    roots_: np.ndarray
    left_: np.ndarray
    right_: np.ndarray

    def _grow(self, trees: list[dict[str, np.ndarray]]) -> None:
        """Keep trees given as dictionaries of `left`, `right`, `feature`, `threshold`, indices within the tree."""
        sizes = [len(tree["left"]) for tree in trees]
        self.roots_ = np.cumsum([0, *sizes[:-1]])
        for name in ("left", "right"):
            own = [np.asarray(tree[name], np.int64) for tree in trees]
            moved = [np.where(part > 0, part + root, -1) for part, root in zip(own, self.roots_, strict=True)]
            setattr(self, f"{name}_", np.concatenate(moved))
        self.feature_ = np.maximum(np.concatenate([tree["feature"] for tree in trees]).astype(np.int64), 0)
        self.threshold_ = np.concatenate([tree["threshold"] for tree in trees]).astype(np.float64)

    def _leaves(self, Z: np.ndarray) -> np.ndarray:
        """Return the (N, T) leaf that each row reaches in each tree."""
        rows = np.arange(len(Z))[:, None]
        node = np.broadcast_to(self.roots_, (len(Z), len(self.roots_)))
        while True:
            goes_left = Z[rows, self.feature_[node]] <= self.threshold_[node]
            after = np.where(goes_left, self.left_[node], self.right_[node])
            if not (after >= 0).any():
                return node
            node = np.where(after >= 0, after, node)

    def _scores(self, Z: np.ndarray) -> np.ndarray:
        self._check_trees(Z.shape[1])
        block = max(1, BLOCK_VALUES // len(self.roots_))
        return np.concatenate([self._sum(self._leaves(part)) for part in chunks(Z, block)])

    def _sum(self, leaves: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _check_trees(self, n_features: int) -> None:
        """Refuse trees on which a walk would not end: they may come from a file."""
        index = np.arange(len(self.left_))
        inner = self.left_ >= 0
        sound = (
            (inner == (self.right_ >= 0)).all()
            and (self.left_[inner] > index[inner]).all() and (self.right_[inner] > index[inner]).all()
            and max(self.left_.max(), self.right_.max(), self.roots_.max()) < len(index) and self.roots_.min() >= 0
            and self.feature_.min() >= 0 and self.feature_.max() < n_features
        )
        if not sound:
            raise HeadError(f"{type(self).__name__}: the decision trees are damaged.")


class RandomForestHead(TreesHead):
    """A random forest.

    Parameters
    ----------
    n_estimators : int
        Trees.
    max_features : 'sqrt', 'log2', int, float or None
        Features tried at a split.
    min_samples_leaf : int
        Rows in a leaf at the least.
    scaling : str
        Feature scaling, one of `SCALINGS`.
    class_weight : 'balanced', dict or None
        Weight of each class.
    seed : int

    Attributes
    ----------
    value_ : (M, K) float32 array
        Class shares in each node.
    """

    def __init__(self, n_estimators: int = 300, max_features: str | float | None = "sqrt",
                 min_samples_leaf: int = 1, scaling: str = "none", class_weight: ClassWeight = None, seed: int = 0):
        self.n_estimators = n_estimators
        self.max_features = max_features
        self.min_samples_leaf = min_samples_leaf
        self.scaling = scaling
        self.class_weight = class_weight
        self.seed = seed

    def _fit(self, Z: np.ndarray, codes: np.ndarray, validation: object) -> None:
        from sklearn.ensemble import RandomForestClassifier

        model = RandomForestClassifier(
            self.n_estimators, max_features=self.max_features, min_samples_leaf=self.min_samples_leaf,
            class_weight=self._code_weights(codes), random_state=self.seed, n_jobs=-1,
        ).fit(Z, codes)
        trees = [one.tree_ for one in model.estimators_]
        self._grow([{"left": tree.children_left, "right": tree.children_right, "feature": tree.feature,
                     "threshold": tree.threshold} for tree in trees])
        self.value_ = np.concatenate([tree.value[:, 0] for tree in trees]).astype(np.float32)

    def _leaves(self, Z: np.ndarray) -> np.ndarray:
        return super()._leaves(Z.astype(np.float32))  # as the trees were grown

    def _sum(self, leaves: np.ndarray) -> np.ndarray:
        total = np.zeros((len(leaves), len(self.classes_)))
        for column in leaves.T:
            total += self.value_[column]
        return np.log(np.maximum(total / leaves.shape[1], np.finfo(np.float64).tiny))


class HistGradientBoostingHead(TreesHead):
    """Gradient-boosted trees on binned features.

    Parameters
    ----------
    learning_rate : float
        Weight of each round.
    max_iter : int
        Rounds; each grows one tree a class, or one for two classes.
    max_leaf_nodes : int
        Leaves of a tree at the most.
    min_samples_leaf : int
        Rows in a leaf at the least.
    l2_regularization : float
        Penalty on the leaves' values.
    max_features : float
        Share of features tried at a split.
    scaling : str
        Feature scaling, one of `SCALINGS`.
    class_weight : 'balanced', dict or None
        Weight of each class in the loss.
    seed : int

    Attributes
    ----------
    n_iter_ : int
        Rounds done.
    value_ : (M,) float64 array
        What a leaf adds to the score of its tree's class.
    baseline_ : (K,) or (1,) float64 array
        Scores before the first tree; of the second class alone where there are two.
    """

    def __init__(self, learning_rate: float = 0.1, max_iter: int = 100, max_leaf_nodes: int = 15,
                 min_samples_leaf: int = 5,
                 l2_regularization: float = 1.0, max_features: float = 0.1, scaling: str = "none",
                 class_weight: ClassWeight = None, seed: int = 0):
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.max_leaf_nodes = max_leaf_nodes
        self.min_samples_leaf = min_samples_leaf
        self.l2_regularization = l2_regularization
        self.max_features = max_features
        self.scaling = scaling
        self.class_weight = class_weight
        self.seed = seed

    def _fit(self, Z: np.ndarray, codes: np.ndarray, validation: object) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        model: Any = HistGradientBoostingClassifier(
            learning_rate=self.learning_rate, max_iter=self.max_iter, max_leaf_nodes=self.max_leaf_nodes,
            min_samples_leaf=self.min_samples_leaf, l2_regularization=self.l2_regularization,
            max_features=self.max_features, early_stopping=False, class_weight=self._code_weights(codes),
            random_state=self.seed,
        ).fit(Z, codes)
        nodes = [tree.nodes for round_ in model._predictors for tree in round_]
        self._grow([{"left": np.where(tree["is_leaf"], 0, tree["left"]),
                     "right": np.where(tree["is_leaf"], 0, tree["right"]),
                     "feature": tree["feature_idx"], "threshold": tree["num_threshold"]} for tree in nodes])
        self.value_ = np.concatenate([tree["value"] for tree in nodes])
        self.baseline_ = np.ravel(model._baseline_prediction)
        self.n_iter_ = model.n_iter_

    def _sum(self, leaves: np.ndarray) -> np.ndarray:
        # trees take turns: tree t belongs to score t modulo their number
        values = self.value_[leaves].reshape(len(leaves), -1, len(self.baseline_))
        scores = values.sum(axis=1) + self.baseline_
        return np.column_stack([np.zeros(len(scores)), scores]) if len(self.baseline_) == 1 else scores
