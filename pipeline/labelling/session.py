"""A session of labelling: which images to ask for, what the head thinks by now, and how good it is."""

from __future__ import annotations

import copy
import re
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ..core.errors import DataError, UnknownNameError
from ..data.digests import fraction
from ..data.files import place
from ..evaluation.metrics import wilson_interval
from ..store import FeatureCache
from .answers import ASKED, GIVEN, OTHER, RANDOM, SKIPPED, Answer, AnswerFile
from .strategies import DEFAULT, STRATEGIES, Pool

COMPONENTS = 256  # principal components that the head of a session sees: fits are quick, and as good
SAMPLE = 4000  # images that they are found on
FOLDS, MANY = 5, 20  # parts of which each is guessed by a head that has seen the others; many while answers are few,
FEW = 400  # for a head on four fifths of so few is worse than the one that is judged
LEAST = 10  # randomly drawn answers from which on accuracy is told
DOUBT = 0.8  # from which probability of another class on a given label is doubted


@dataclass(frozen=True)
class Question:
    """An image that is asked for.

    Attributes
    ----------
    row : int
        In the cache.
    path : str
    guess : str
        The class that the head thinks likeliest; empty as long as there is no head.
    probability : float
        Of it.
    chosen : str
        ``random`` or ``asked``.
    """

    row: int
    path: str
    guess: str
    probability: float
    chosen: str


@dataclass(frozen=True)
class Estimate:
    """How good the head is, on the randomly drawn images alone, each guessed by a head that has not seen its label.

    Attributes
    ----------
    n : int
        Randomly drawn images that have a label.
    accuracy, low, high : float or None
        With its 95 % interval (Wilson's); None where there are too few.
    halved_by : int or None
        How many more random answers would halve the interval.
    chosen_accuracy : float or None
        The same on the images that the strategy chose: what would be told, wrongly, if nothing were drawn at random.
    """

    n: int
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    halved_by: int | None = None
    chosen_accuracy: float | None = None


class LabelSession:
    """Labels the images of a cache; a context manager, or call `close`.

    Parameters
    ----------
    features : FeatureCache or path-like
        Of images some of which may have labels already.
    labels : path-like
        The table to write answers to; one that is there is gone on with.
    classes : sequence of str
        Known beforehand, besides those that images have.
    strategy : str
        Of asking: a name in `pipeline.labelling.strategies.STRATEGIES`.
    random_share : float
        Share of the images asked for that are drawn at random: accuracy is estimated on these.
    seed : int

    Raises
    ------
    DataError
        If the table is something else, or the images are behind a URL.
    BusyError
        If another process labels into that table.

    Examples
    --------
    >>> with LabelSession("cache/photos/efficientnet_lite0-0123456789ab.h5", "labels.csv") as session:  # doctest: +SKIP
    ...     for question in session.next(10):
    ...         session.answer(question.path, input(question.path), question.chosen)
    ...     print(session.estimate())
    """

    def __init__(
        self, features: FeatureCache | str | Path, labels: str | Path, *, classes: Sequence[str] = (),
        strategy: str = DEFAULT, random_share: float = 0.2, seed: int = 0,
    ):  # fmt: skip
        if not 0 < random_share < 1:
            raise DataError(f"The share of images drawn at random is above 0 and below 1, not {random_share}: accuracy "
                            "is estimated on these alone.")
        self._ask = STRATEGIES[strategy]
        self.strategy, self.random_share, self._rng = strategy, random_share, np.random.default_rng(seed)
        opened = features if isinstance(features, FeatureCache) else FeatureCache.open(features)
        try:
            root = place(opened.meta.get("root", ""))
            self.paths = list(opened.paths)
            self.rows = _components(opened.read_rows(view=0))
            self._order = fraction(opened.digests)
            known = [(path, opened.classes[label]) for path, label in zip(self.paths, opened.labels, strict=True)
                     if label >= 0]  # fmt: skip
        finally:
            if opened is not features:
                opened.close()
        if not isinstance(root, Path):
            raise DataError(f"The images are behind {root}, and a table of answers names files of this machine only.")
        self.root = root
        self._row_of = {path: row for row, path in enumerate(self.paths)}
        self.file = AnswerFile(Path(labels).absolute(), self.root.absolute())
        # Only these are drawn at random, and the strategy asks for none of them: what it takes it would take from the
        # sample too. By content, so that further images leave the sample one.
        self._sample = self._order < random_share
        self._hold = self.file.held()
        self._hold.__enter__()
        self._answers: dict[int, Answer] = {}
        self._undo: list[dict[int, Answer | None]] = []
        self.gone = 0
        try:
            self.classes: list[str] = list(dict.fromkeys(map(_name, classes)))
            self._begin(known)
        except BaseException:
            self.close()
            raise

    def _begin(self, known: Sequence[tuple[str, str]]) -> None:
        """Take up what was answered before, and what labels the images had."""
        there = {answer.path for answer in self.file.answers}
        if given := [Answer(path, label, GIVEN) for path, label in known if path not in there]:
            self.file.add(given)
        for answer in self.file.answers:
            if answer.path in self._row_of:
                self._take(answer)
            else:
                self.gone += 1  # moved or removed since; the table keeps what was said of it
        self._learn()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the table."""
        self._hold.__exit__(None, None, None)

    @property
    def answers(self) -> dict[str, Answer]:
        """What was said of each image, by its path."""
        return {self.paths[row]: answer for row, answer in self._answers.items()}

    @property
    def answered(self) -> int:
        """How many images have an answer."""
        return len(self._answers)

    @property
    def counts(self) -> dict[str, int]:
        """Images a class."""
        found = dict.fromkeys(self.classes, 0)
        for answer in self._answers.values():
            if answer.label:
                found[answer.label] += 1
        return found

    def row_of(self, path: str) -> int:
        """Return an image's row in the cache."""
        return self._known(path)

    def question(self, row: int) -> Question:
        """Return what would be asked about an image."""
        return self._question(row, RANDOM if self._sample[row] else ASKED)

    def next(self, count: int = 12) -> list[Question]:
        """Return images to ask for: `random_share` of them drawn at random, the others by the strategy.

        Images that were drawn and not answered are drawn again.
        """
        open_ = self._open()
        sample, rest = open_[self._sample[open_]], open_[~self._sample[open_]]
        usual = int(self.random_share * count + self._rng.random())  # of few at a time now one, now none
        drawn = min(max(usual, count - len(rest)), len(sample))
        at_random = sample[np.argsort(self._order[sample], kind="stable")][:drawn]
        # The strategy knows none of the labels that accuracy is estimated on: it would ask for nothing near them,
        # a head that is to guess one without its label would be worse there than elsewhere, and estimates too low (by
        # two to four points in simulations).
        known = np.array(sorted(row for row in self._labelled if self._answers[row].chosen != RANDOM), int)
        pool = Pool(self.rows, rest, known, self._probable(known))
        asked = self._ask(pool, min(count - drawn, len(rest)), self._rng) if len(rest) and count > drawn else rest[:0]
        chosen = [(int(row), RANDOM) for row in at_random] + [(int(row), ASKED) for row in asked]
        return [self._question(row, how) for row, how in chosen]

    def alike(self, path: str, count: int = 12) -> list[Question]:
        """Return the images without an answer that look most like one: one answer may do for all of them."""
        row = self._known(path)
        far = np.square(self.rows - self.rows[row]).sum(axis=1)
        order = [int(one) for one in np.argsort(far, kind="stable")
                 if one != row and int(one) not in self._answers and not self._sample[one]]
        return [self._question(one, ASKED) for one in order[:count]]

    def answer(self, paths: str | Iterable[str], label: str, chosen: str = ASKED) -> None:
        """Keep an answer for one image or several, and learn from it. A class that is new is known from then on.

        Parameters
        ----------
        paths : str or iterable of str
        label : str
            Empty with `chosen` ``skipped`` or ``other``.
        chosen : str
            As the question said.

        Raises
        ------
        DataError
            If there is no such image, or the label is no name.
        """
        label = "" if chosen in (SKIPPED, OTHER) else _name(label)
        rows = [self._known(path) for path in ([paths] if isinstance(paths, str) else paths)]
        said = {row: Answer(self.paths[row], label, RANDOM if self._sample[row] and label else chosen) for row in rows}
        self.file.add(list(said.values()))
        self._undo.append({row: self._answers.get(row) for row in said})
        for answer in said.values():
            self._take(answer)
        self._learn()

    def undo(self) -> list[str]:
        """Take the last answer back, and return the images that it was of."""
        if not self._undo:
            return []
        before = self._undo.pop()
        self.file.put({self.paths[row]: answer for row, answer in before.items()})
        for row, answer in before.items():
            if answer is None:
                self._answers.pop(row, None)
            else:
                self._answers[row] = answer
        self._learn()
        return [self.paths[row] for row in before]

    def add_class(self, name: str) -> None:
        """Make a class known that no image has yet; it is kept once one has.

        Raises
        ------
        DataError
            If that is no name.
        """
        self.classes = list(dict.fromkeys([*self.classes, _name(name)]))

    def rename(self, old: str, new: str) -> None:
        """Give a class another name; that of another class merges them.

        Raises
        ------
        UnknownNameError, DataError
            If there is no such class, or the new one is no name.
        """
        new = _name(new)
        if old not in self.classes:
            raise UnknownNameError("class", old, self.classes)
        changed = [Answer(one.path, new, one.chosen) for one in self._answers.values() if one.label == old]
        if changed:
            self.file.add(changed)
        self.classes = list(dict.fromkeys(new if name == old else name for name in self.classes))
        for answer in changed:
            self._take(answer)
        self._undo.clear()
        self._learn()

    def snapshot(self) -> LabelSession:
        """Return the session as it is now, for estimates that take a while: this one may go on meanwhile.

        Nothing is to be answered in it.
        """
        now = copy.copy(self)
        now._answers, now.classes = dict(self._answers), list(self.classes)
        return now

    def estimate(self) -> Estimate:
        """Return how good the head is; see `Estimate`."""
        return self._estimate(*self._left_out())

    def curve(self, points: int = 6) -> list[tuple[int, float]]:
        """Return the accuracy that was estimated after the first labels, in the order in which they were given.

        Returns
        -------
        list of (int, float)
            How many labels, and the accuracy; the last of all labels. Where it could not be estimated, nothing.
        """
        order = np.array(self._labelled, int)
        counts = np.unique(np.linspace(min(2 * FOLDS, len(order)), len(order), points).astype(int))
        parts = [np.sort(order[:count]) for count in counts]
        found = [self._estimate(rows, self._guesses(rows)).accuracy for rows in parts]
        return [(len(rows), accuracy) for rows, accuracy in zip(parts, found, strict=True) if accuracy is not None]

    def _estimate(self, rows: np.ndarray, found: np.ndarray | None) -> Estimate:
        drawn = np.array([self._answers[int(row)].chosen == RANDOM for row in rows], bool)
        if found is None or drawn.sum() < LEAST:
            return Estimate(int(drawn.sum()))
        right = found.argmax(axis=1) == self._codes(rows)
        n, hits = int(drawn.sum()), int(right[drawn].sum())
        low, high = wilson_interval(hits, n)
        of_asked = right[~drawn]
        return Estimate(n, hits / n, low, high, _halving(hits / n, n, high - low),
                        float(of_asked.mean()) if len(of_asked) else None)

    def export(self, folder: str | Path, copy: bool = False) -> int:
        """Put the labelled images into class folders, as links or copies, and return how many.

        Parameters
        ----------
        folder : path-like
            Gets ``train/CLASS/…`` and, of those drawn at random, ``val/CLASS/…``. It is made, or empty.
        copy : bool

        Raises
        ------
        DataError
            If there is something in the folder, or an image is no file of its own.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{str(folder)!r} is not empty, and nothing in it is replaced. Choose another folder.")
        labelled = [answer for answer in self._answers.values() if answer.label]
        for number, answer in enumerate(labelled):
            source = self.root.absolute() / answer.path
            if not source.is_file():
                raise DataError(f"{source} is no file of its own any more, so it cannot be put into a folder.")
            name = re.sub(r"[/\\\0]", "_", answer.label).strip(". ") or "_"
            place_of = folder / answer.split / name
            place_of.mkdir(parents=True, exist_ok=True)
            target = place_of / source.name
            if target.exists() or target.is_symlink():  # of another folder below the root
                target = place_of / f"{source.stem}-{number}{source.suffix}"
            if copy:
                shutil.copy2(source, target)
            else:
                target.symlink_to(source)
        return len(labelled)

    def doubts(self, count: int = 12) -> list[tuple[Answer, str, float]]:
        """Return labels that a head which has not seen them disagrees with, the surest first.

        Returns
        -------
        list of (Answer, str, float)
            With the likelier class and its probability.
        """
        rows, found = self._left_out()
        if found is None:
            return []
        codes = self._codes(rows)
        likelier = found.argmax(axis=1)
        sure = found.max(axis=1)
        wrong = [at for at in np.argsort(-sure, kind="stable") if likelier[at] != codes[at] and sure[at] >= DOUBT]
        names = self._trained
        return [(self._answers[int(rows[at])], names[likelier[at]], float(sure[at])) for at in wrong[:count]]

    @property
    def _labelled(self) -> list[int]:
        return [row for row, answer in self._answers.items() if answer.label]

    def _codes(self, rows: np.ndarray) -> np.ndarray:
        place_of = {name: number for number, name in enumerate(self._trained)}
        return np.array([place_of[self._answers[int(row)].label] for row in rows], int)

    def _known(self, path: str) -> int:
        if path not in self._row_of:
            raise DataError(f"There is no image {path!r} in these features.")
        return self._row_of[path]

    def _open(self) -> np.ndarray:
        return np.array([row for row in range(len(self.paths)) if row not in self._answers], int)

    def _take(self, answer: Answer) -> None:
        self._answers[self._row_of[answer.path]] = answer
        if answer.label and answer.label not in self.classes:
            self.classes.append(answer.label)

    def _question(self, row: int, how: str) -> Question:
        if self._probabilities is None:
            return Question(row, self.paths[row], "", 0.0, how)
        likeliest = int(self._probabilities[row].argmax())
        return Question(row, self.paths[row], self._trained[likeliest], float(self._probabilities[row, likeliest]), how)

    def _learn(self) -> None:
        """Train the head anew on all labels."""
        self._trained = sorted({self._answers[row].label for row in self._labelled})  # classes with an answer
        self._guessed: tuple[np.ndarray, np.ndarray | None] | None = None
        self._probabilities = self._probable(np.array(sorted(self._labelled), int))

    def _probable(self, rows: np.ndarray) -> np.ndarray | None:
        """Return all images' probabilities by a head trained on some labels, (N, K); None of fewer than two classes."""
        codes = self._codes(rows)
        if len(np.unique(codes)) < 2:
            return None
        return _head().fit(self.rows[rows], codes).predict_proba(self.rows)

    def _left_out(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the labelled images, and each one's probabilities by a head trained without it; None with too few."""
        if self._guessed is None:
            rows = np.array(sorted(self._labelled), int)
            self._guessed = rows, self._guesses(rows)
        return self._guessed

    def _guesses(self, rows: np.ndarray) -> np.ndarray | None:
        if len(self._trained) < 2 or len(rows) < 2 * FOLDS:
            return None
        codes = self._codes(rows)
        found = np.zeros((len(rows), len(self._trained)))
        # by the image, not by its place among the answers: so the next answer changes no other image's fold
        count = MANY if len(rows) < FEW else FOLDS
        folds = (self._order[rows] * 1e9).astype(np.int64) % count
        for fold in range(count):
            train, test = folds != fold, folds == fold
            if not test.any():
                continue
            if len(np.unique(codes[train])) < 2:
                return None
            head = _head().fit(self.rows[rows[train]], codes[train])
            found[np.ix_(test, head.classes_)] = head.predict_proba(self.rows[rows[test]])
        return found


def _name(label: str) -> str:
    label = unicodedata.normalize("NFC", label.strip())
    if not label or len(label) > 200 or not label.isprintable():
        raise DataError("A label is a name of 1 to 200 characters that can be printed; to pass over an image, answer "
                        "'skipped' or 'other'.")
    return label


def _head() -> Any:
    from ..heads import make_head

    return make_head("ridge")


def _components(rows: np.ndarray) -> np.ndarray:
    """Return images by their principal components, (N, at most 256) float32."""
    rows = np.asarray(rows, np.float32)
    sample = rows if len(rows) <= SAMPLE else rows[np.random.default_rng(0).permutation(len(rows))[:SAMPLE]]
    mean = sample.mean(axis=0)
    if min(sample.shape) <= COMPONENTS:
        return rows - mean
    centred = sample - mean
    _, directions = np.linalg.eigh(centred.T @ centred)
    return (rows - mean) @ directions[:, : -COMPONENTS - 1 : -1]


def _halving(accuracy: float, n: int, width: float) -> int | None:
    """Return how many more answers halve an interval, were the accuracy to stay as it is."""
    more = n
    while more < 100 * n:
        low, high = wilson_interval(round(accuracy * (n + more)), n + more)
        if high - low <= width / 2:
            return more
        more = ceil(more * 1.05)
    return None
