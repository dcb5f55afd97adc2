"""Labelling without a browser: what is asked, what is kept, how good it is said to be."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import pipeline
from pipeline.core.errors import BusyError, DataError, UnknownNameError
from pipeline.labelling import STRATEGIES, LabelSession
from pipeline.labelling.strategies import Pool

X, y = load_digits(n_class=4, return_X_y=True)
NAMES = np.array(["zero", "one", "two", "three"])[y]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    names = [f"{number:04d}.png" for number in range(len(y))]
    return pipeline.cache_embeddings(X, None, paths=names, dataset_name="digits").path


def truth(path: str) -> str:
    return str(NAMES[int(Path(path).stem)])


def answered(session: LabelSession, rounds: int, count: int = 12) -> None:
    for _ in range(rounds):
        for question in session.next(count):
            session.answer(question.path, truth(question.path), question.chosen)


def lines() -> list[dict[str, str]]:
    with Path("labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_answers_are_on_disk_at_once_and_gone_on_with(cache):
    with LabelSession(cache, "labels.csv") as session:
        first = session.next(6)
        assert all(question.guess == "" for question in first)
        for number, question in enumerate(first, 1):
            session.answer(question.path, truth(question.path), question.chosen)
            assert len(lines()) == number and lines()[-1]["label"] == truth(question.path)
    with LabelSession(cache, "labels.csv") as session:
        assert sum(session.counts.values()) == 6
        assert not {question.path for question in first} & {question.path for question in session.next(50)}


def test_a_stated_share_is_drawn_at_random_from_images_that_the_strategy_never_takes(cache):
    with LabelSession(cache, "labels.csv", random_share=0.25) as session:
        answered(session, 10, 20)
        drawn = [row for row in lines() if row["chosen"] == "random"]
        assert len(drawn) == 50 and {row["split"] for row in drawn} == {"val"}
        assert {row["split"] for row in lines() if row["chosen"] == "asked"} == {"train"}
    with pytest.raises(DataError, match="above 0 and below 1"):
        LabelSession(cache, "other.csv", random_share=0)


def test_what_is_asked_for_does_not_depend_on_the_labels_of_those_drawn_at_random(cache):
    asked, guessed = [], []
    for number, wrong in enumerate((False, True)):
        with LabelSession(cache, f"{number}.csv") as session:
            for question in session.next(60):
                drawn = question.chosen == "random"
                session.answer(question.path, "zero" if drawn and wrong else truth(question.path), question.chosen)
            questions = session.next(40)
            asked.append([question.path for question in questions if question.chosen == "asked"])
            guessed.append([question.guess for question in questions])
    assert asked[0] == asked[1] and len(asked[0]) >= 30
    assert guessed[0] != guessed[1]  # the head knows them


def test_the_head_learns_and_says_how_good_it_is_on_the_random_ones_alone(cache):
    with LabelSession(cache, "labels.csv") as session:
        assert session.estimate().accuracy is None
        answered(session, 12)
        found = session.estimate()
        assert found.n == sum(row["chosen"] == "random" for row in lines()) and found.low < found.accuracy <= found.high
        assert found.halved_by > found.n
        guesses = session.next(40)
        drawn = [question for question in guesses if question.chosen == "random"]
        assert np.mean([question.guess == truth(question.path) for question in drawn]) > 0.7


def test_the_learning_curve_goes_on_from_the_table(cache):
    with LabelSession(cache, "labels.csv") as session:
        assert session.curve() == []
        told = []
        for count in (55, 45):
            for number, question in enumerate(session.next(count)):
                session.answer(question.path, truth(question.path) if number % 7 else "zero", question.chosen)
            told.append(session.estimate().accuracy)
    with LabelSession(cache, "labels.csv") as session:
        curve = session.curve(3)
    assert curve[-2:] == [(55, told[0]), (100, told[1])] and 0 < told[1] != told[0] < 1  # as it was told then


def test_undo_takes_back_the_last_answer_and_the_one_that_it_replaced(cache):
    with LabelSession(cache, "labels.csv") as session:
        one, two = session.next(2)
        session.answer(one.path, "zero")
        session.answer([one.path, two.path], "one")
        assert [row["label"] for row in lines()] == ["one", "one"]
        assert set(session.undo()) == {one.path, two.path}
        assert [row["label"] for row in lines()] == ["zero"] and session.counts["zero"] == 1
        session.undo()
        assert lines() == [] and session.undo() == []


def test_classes_are_added_renamed_and_merged(cache):
    with LabelSession(cache, "labels.csv", classes=["zero", "one"]) as session:
        questions = session.next(3)
        for question, label in zip(questions, ("zero", "nought", "one"), strict=True):
            session.answer(question.path, label)
        session.rename("nought", "zero")
        assert session.counts == {"zero": 2, "one": 1}
        session.rename("one", "un")
        assert session.classes == ["zero", "un"] and sorted(row["label"] for row in lines()) == ["un", "zero", "zero"]
        with pytest.raises(UnknownNameError, match="class 'on'"):
            session.rename("on", "x")


def test_skipped_images_have_no_label_and_are_not_asked_again(cache):
    with LabelSession(cache, "labels.csv") as session:
        one, two = session.next(2)
        session.answer(one.path, "", "skipped")
        session.answer(two.path, "", "other")
        assert [row["label"] for row in lines()] == ["", ""] and session.counts == {}
        assert not {one.path, two.path} & {question.path for question in session.next(100)}


@pytest.mark.parametrize(("path", "label"), [("nothing.png", "a"), ("0000.png", ""), ("0000.png", "a\nb"),
                                             ("../0000.png", "a"), ("0000.png", "x" * 300)])  # fmt: skip
def test_what_is_no_answer_is_refused_and_nothing_is_written(cache, path, label):
    with LabelSession(cache, "labels.csv") as session:
        with pytest.raises(DataError):
            session.answer(path, label)
        assert not Path("labels.csv").exists() and session.counts == {}


def test_wrong_labels_are_doubted(cache):
    with LabelSession(cache, "labels.csv") as session:
        answered(session, 12)
        wrong = [path for path, answer in session.answers.items() if answer.label == "zero"][:2]
        session.answer(wrong, "one")
        doubted = [answer.path for answer, likelier, _ in session.doubts() if likelier == "zero"]
        assert set(doubted) & set(wrong)


def test_images_that_look_alike_are_offered_together(cache):
    with LabelSession(cache, "labels.csv") as session:
        found = session.alike("0000.png", 10)
        assert np.mean([truth(question.path) == truth("0000.png") for question in found]) >= 0.8


def test_the_table_is_an_ordinary_data_set(tmp_path, monkeypatch):
    from images import write_images

    monkeypatch.chdir(tmp_path)
    write_images(tmp_path, *(f"photos/{number}.png" for number in range(30)))
    done = pipeline.extract("photos", "pixels")
    with LabelSession(done.path, "mine/labels.csv") as session:
        for question in session.next(30):
            session.answer(question.path, "odd" if int(Path(question.path).stem) % 2 else "even", question.chosen)
        assert session.export("folders") == 30 and session.export("copies", copy=True) == 30
        with pytest.raises(DataError, match="is not empty"):
            session.export("folders")
    assert Path("folders/val").is_dir() and next(Path("folders/train/odd").iterdir()).is_symlink()
    exported, copied = pipeline.load_dataset("folders"), pipeline.load_dataset("copies")
    assert len(exported) == 30 and exported.classes == ("even", "odd") and (exported.digests == copied.digests).all()
    dataset = pipeline.load_dataset("mine/labels.csv")
    assert len(dataset) == 30 and dataset.classes == ("even", "odd") and set(dataset.splits) == {"train", "val"}
    assert pipeline.extract("mine/labels.csv", "pixels").computed == 0


def test_one_process_labels_at_a_time_and_strange_tables_are_refused(cache):
    with LabelSession(cache, "labels.csv"), pytest.raises(BusyError):
        LabelSession(cache, "labels.csv")
    Path("mine.csv").write_text("path,label\na,b\n")
    with pytest.raises(DataError, match="is no table of answers"):
        LabelSession(cache, "mine.csv")
    assert Path("mine.csv").read_text() == "path,label\na,b\n"


LABELLER = """
import sys
from pipeline.labelling import LabelSession
with LabelSession(sys.argv[1], "labels.csv") as session:
    while True:
        for question in session.next(4):
            session.answer(question.path, "ab"[question.row % 2], question.chosen)
            print(question.path, flush=True)
"""


def test_a_kill_loses_no_answer_that_was_told_to_be_kept_and_doubles_none(cache):
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", LABELLER, str(cache)], stdout=subprocess.PIPE, text=True)
        told = [process.stdout.readline().strip() for _ in range(9)]
        os.kill(process.pid, signal.SIGKILL)
        told += process.stdout.read().split()
        process.wait()
        with LabelSession(cache, "labels.csv") as session:
            assert set(told) <= set(session.answers)
        paths = [row["path"] for row in lines()]
        assert len(paths) == len(set(paths)) >= 9


def full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_line_that_was_cut_off_is_dropped_and_a_full_disk_keeps_what_was_there(cache, monkeypatch):
    with LabelSession(cache, "labels.csv") as session:
        answered(session, 1, 4)
    with Path("labels.csv").open("a") as file:
        file.write("0001.png,zer")
    with LabelSession(cache, "labels.csv") as session:
        assert sum(session.counts.values()) == 4 and len(lines()) == 4
        before = Path("labels.csv").read_bytes()
        monkeypatch.setattr(os, "fsync", full)
        question = session.next(1)[0]
        with pytest.raises(OSError, match="No space"):
            session.answer(question.path, "zero")
        assert Path("labels.csv").read_bytes() == before and question.path not in session.answers


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_asks_for_distinct_open_images_from_none_to_the_last(name):
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    even = np.full((40, 3), 1 / 3)
    for open_, probabilities in ((np.arange(40), None), (np.arange(10, 40), even), (np.arange(3), None)):
        pool = Pool(rows, open_, np.setdiff1d(np.arange(40), open_), probabilities)
        found = STRATEGIES[name](pool, 7, np.random.default_rng(0)).tolist()
        assert len(found) == len(set(found)) == min(7, len(open_)) and set(found) <= set(open_.tolist())
