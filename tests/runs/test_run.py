"""Where runs are written: none takes the place of another one."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.core.errors import BusyError
from pipeline.runs.run import claimed, place_for, writing
from pipeline.runs.scores import ranked


def write(path: Path, asked: object, **more: object) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.json").write_text(json.dumps({"asked": asked, **more}))


def test_other_settings_take_the_next_number_and_the_same_ones_their_own_run(tmp_path):
    for number, asked in enumerate(({"C": 1}, {"C": 2}, {"C": 3})):
        place = place_for(tmp_path / "run", asked)
        assert place.path.name == ("run" if number == 0 else f"run-{number + 1}")
        assert bool(place.remark) == (number > 0)
        write(place.path, asked)
    again = place_for(tmp_path / "run", {"C": 2})
    assert again.path.name == "run-2" and "the same settings" in again.remark


def test_a_run_of_an_earlier_version_and_one_that_cannot_be_read_stay(tmp_path):
    write(tmp_path / "run", None)
    assert place_for(tmp_path / "run", {"C": 1}).path.name == "run-2"
    (tmp_path / "run" / "metrics.json").write_text("{")
    assert place_for(tmp_path / "run", {"C": 1}).path.name == "run-2"


def test_overwriting_says_what_it_replaced(tmp_path):
    write(tmp_path / "run", {"C": 1}, splits={"val": {"accuracy": 0.75}})
    place = place_for(tmp_path / "run", {"C": 2}, overwrite=True)
    assert place.path.name == "run" and "was replaced (accuracy 0.7500 on val)" in place.remark


def test_those_who_write_at_once_get_places_of_their_own(tmp_path):
    def run(number: int) -> str:
        with claimed(tmp_path / "run", {"C": number}, wait=20) as place:
            time.sleep(0.02)
            write(place.path, {"C": number})
        return place.path.name

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(run, range(6)))) == 6


def test_a_run_that_is_being_written_is_busy_and_an_error_inside_is_the_callers(tmp_path):
    with writing(tmp_path / "run"), pytest.raises(BusyError), claimed(tmp_path / "run", {}):
        pass
    with pytest.raises(BusyError, match="of another"), claimed(tmp_path / "run", {}, wait=20):
        raise BusyError("of another")


def test_of_as_accurate_runs_that_of_the_least_log_loss_is_the_best():
    def run(name, accuracy, log_loss):
        return {"name": name, "dataset": "d", "splits": {"val": {"accuracy": accuracy, "log_loss": log_loss}}}

    found = ranked([run("a", 0.9, 0.3), run("b", 0.9, 0.1), run("c", 1.0, 2.0), run("d", 0.9, 0.1)])
    assert [(one["name"], one["split"]) for one in found] == [("c", "val"), ("b", "val"), ("d", "val"), ("a", "val")]
