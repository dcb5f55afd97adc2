"""Recipes: every published system loads, and runs one tiny epoch."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from images import served
from PIL import Image
from sklearn.datasets import load_sample_images

from pipeline.cli import main
from pipeline.cli.recipes import load_recipe, names
from pipeline.cli.recipes.plan import overrides_of, plan
from pipeline.cli.recipes.run import StepFailedError, carry_out
from pipeline.reports.pictures import PAPER
from pipeline.runs.run import Run


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> Path:
    """Tiles of two photographs, a class each, in train, val and test."""
    folder = tmp_path_factory.mktemp("recipes") / "tiles"
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        for split, first in (("train", 0), ("val", 4), ("test", 6)):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(first, first + (4 if split == "train" else 2)):
                Image.fromarray(photo[200:264, 64 * number : 64 * number + 64]).save(place / f"{number}.png")
    return folder


def recipe_file(folder: Path, text: str) -> str:
    (folder / "mine.toml").write_text(f'title = "mine"\nsplit = "val"\n{text}')
    return str(folder / "mine.toml")


def in_this_process(words: list[str]) -> str:
    """Run a step and return what it printed; importing torch once is enough for all of them."""
    with redirect_stdout(io.StringIO()) as said:
        if main(words):
            raise StepFailedError(f"`pipeline {words[0]}` failed, see above.")
    return said.getvalue()


def error_of(capsys, *words: str) -> str:
    assert main(["recipe", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("name", names())
def test_a_recipe_says_what_was_published(name):
    facts = load_recipe(name).facts
    assert facts["source"]
    assert 0 < facts.get("accuracy", 0.5) < 1
    assert "accuracy" in facts or "figure" in facts["remarks"]


@pytest.mark.parametrize("name", names())
def test_a_recipe_runs_one_tiny_epoch(name, tiles, capfd):
    recipe, folder = load_recipe(name), tiles.parent
    flags = [
        "--data", str(tiles), "--backbone", "efficientnet_lite0", "--cache-dir", str(folder / "cache"),
        "--runs-dir", str(folder / "runs"), "--workers", "1",
    ]  # fmt: skip
    if "finetune" in recipe.steps:
        flags += ["--epochs", "1", "--batch-size", "4", "--finetune.log-every", "1"]
    if "finetune-cached" in recipe.steps:
        flags += ["--finetune-cached.epochs", "1", "--finetune-cached.unfreeze", "last-1"]
    if recipe.settings["extract"].get("precision") == "int8":  # making that network takes half a minute
        flags += ["--extract.precision", "bfloat16"]
    out = io.StringIO()
    done = carry_out(recipe, overrides_of(recipe, flags), in_this_process, out)
    rows = {row["way"]: row for row in done["results"]}
    assert rows["published"].get("accuracy") == recipe.facts.get("accuracy")
    for way in rows.keys() - {"published"}:
        assert rows[way]["n"] == 4
        assert rows[way]["split"] == recipe.facts["split"]
        assert rows[way]["seconds"] > 0
        scores = Run.open(rows[way]["run"], folder / "runs").metrics["splits"][recipe.facts["split"]]
        assert rows[way]["accuracy"] == scores["accuracy"]
    assert rows["from cached features"]["selection"] != "val"
    assert all(Image.open(path).format == "PNG" for path in done["pictures"])
    assert (" score " in out.getvalue()) == (recipe.settings.get("predict", {}).get("scores", False))
    assert ("--run recipe-" in done["commands"][-1]) == ("predict" in recipe.steps)
    said = capfd.readouterr().err
    assert ("batch 1/2  loss" in said) == ("finetune" in recipe.steps)
    assert ("multiply-adds" in out.getvalue()) == ("summary" in recipe.steps)


def test_run_types_the_commands_that_show_prints(tiles, tmp_path):
    words = [sys.executable, "-m", "pipeline", "recipe"]
    asked = ["A2", "--only", "extract,train-head", "--data", str(tiles), "--backbone", "pixels", "--json"]
    show = subprocess.run([*words, "show", *asked], check=True, capture_output=True, text=True, cwd=tmp_path)
    done = subprocess.run([*words, "run", *asked], check=True, capture_output=True, text=True, cwd=tmp_path)
    result = json.loads(done.stdout)
    assert result["commands"] == json.loads(show.stdout)["commands"]
    assert [row["way"] for row in result["results"]] == ["published", "from cached features"]
    assert "$ pipeline extract" in done.stderr
    assert (tmp_path / "runs" / "recipe-A2-cached" / "metrics.json").is_file()


def test_the_run_that_was_just_trained_predicts_also_where_an_earlier_one_has_its_name(tiles, tmp_path):
    steps = '[extract]\n[train-head]\nhead = "ridge"\n[predict]\n[all]\nbackbone = "pixels"\n'
    recipe = load_recipe(recipe_file(tmp_path, steps))
    common = ["--data", str(tiles), "--cache-dir", str(tmp_path / "cache"), "--runs-dir", str(tmp_path / "runs")]
    for head, name in (("ridge", "recipe-mine-cached"), ("knn", "recipe-mine-cached-2")):
        done = carry_out(recipe, overrides_of(recipe, [*common, "--head", head]), in_this_process, io.StringIO())
        assert done["runs"] == [name] and f"--run {name} " in done["commands"][-1] + " "


def test_the_command_line_goes_before_the_recipe():
    recipe = load_recipe("a1")
    flags = ["--epochs=3", "--backbone", "vgg16", "--extract.precision", "bfloat16", "--set", "tol=1", "--set", "x=2"]
    planned = plan(recipe, overrides_of(recipe, flags))
    finetune, extract, head = (" ".join(planned[step]) for step in ("finetune", "extract", "train-head"))
    assert "--epochs 3" in finetune and "--epochs 25" not in finetune
    assert "--weights" not in finetune  # they were ResNet-18's
    assert "--precision" not in finetune and "--precision bfloat16" in extract
    assert "--precision bfloat16" in head  # or it would look for other features
    assert "--epochs" not in head
    assert "--set tol=1 --set x=2" in head


def test_another_head_has_a_grid_of_its_own():
    recipe = load_recipe("C1")
    words = plan(recipe, overrides_of(recipe, ["--head", "ridge"]))["train-head"]
    assert "ridge" in words and "--sweep" in words and "--grid" not in words


def test_a_strategy_is_also_what_the_summary_is_of():
    recipe = load_recipe("B")
    planned = plan(recipe, overrides_of(recipe, ["--data", "x", "--strategy", "whole"]))
    assert all("--strategy whole" in " ".join(planned[step]) for step in ("summary", "finetune"))


@pytest.mark.parametrize(("text", "hint"), [
    ("[finetune]\nepoch = 3", "Unknown setting in [finetune] of recipe mine 'epoch'. Did you mean 'epochs'"),
    ("[all]\nbackbon = 'a'\n[extract]", "Unknown setting in [all] of recipe mine 'backbon'. Did you mean 'backbone'"),
    ("[finetun]\nepochs = 3", "Unknown section of recipe mine 'finetun'. Did you mean 'finetune'"),
    ("acuracy = 0.9\n[extract]", "Unknown entry of recipe mine 'acuracy'. Did you mean 'accuracy'"),
    ("[finetune]\nepochs = 'three'", "Recipe mine, [finetune]: Argument --epochs: invalid int value: 'three'"),
    ("accuracy = 94", "has accuracy 94: expected a share between 0 and 1"),
    ("[finetune", "is no TOML"),
])  # fmt: skip
def test_a_wrong_recipe_is_one_line_with_a_suggestion(text, hint, tmp_path, capsys):
    assert hint in error_of(capsys, "show", recipe_file(tmp_path, text))


def test_wrong_words_are_one_line_with_a_suggestion(capsys):
    assert "Did you mean 'C1'" in error_of(capsys, "show", "C11")
    assert "Did you mean '--epochs'" in error_of(capsys, "show", "A1", "--epoch", "3")
    assert "'--json'" in error_of(capsys, "show", "A1", "--jso")
    assert "Did you mean 'extract'" in error_of(capsys, "run", "A1", "--only", "extrac")
    assert "trains one head, not 'all'" in error_of(capsys, "run", "A1", "--head", "all")
    assert "Expected a flag, not 'fast'" in error_of(capsys, "run", "A1", "fast")
    assert "Expected a flag, not '4'" in error_of(capsys, "run", "A1", "--epochs", "3", "4")
    assert "needs --data: 500 cats and dogs" in error_of(capsys, "run", "B")


def test_a_failing_step_ends_the_run_and_says_what_to_type(tiles, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken = ["--only", "extract", "--data", str(tiles), "--layer", "nowhere", "--backbone", "efficientnet_lite0"]
    assert main(["recipe", "run", "A1", *broken]) == 2
    assert capfd.readouterr().err.endswith("error: `pipeline extract` failed, see above.\n")


def test_images_behind_a_url_are_drawn_and_predicted(tiles, tmp_path):
    mine = recipe_file(tmp_path, "[extract]\n[train-head]\nhead = 'ridge'\n[predict]\nscores = true")
    shutil.make_archive(str(tmp_path / "web" / "tiles"), "zip", tiles)
    out, recipe = io.StringIO(), load_recipe(mine)
    with served(tmp_path / "web", ranges=True) as address:
        flags = ["--data", f"{address}/tiles.zip", "--backbone", "pixels", "--cache-dir", str(tmp_path / "cache"),
                 "--runs-dir", str(tmp_path / "runs")]  # fmt: skip
        done = carry_out(recipe, overrides_of(recipe, flags), in_this_process, out)
    assert f"{address}/tiles.zip/val/china/4.png" in out.getvalue()
    colours = Image.open(done["pictures"][0]).getcolors(1_000_000)
    assert max(count for count, colour in colours if colour != PAPER) < 64 * 64  # no grey square in an image's place


def test_help_and_commands_without_data_need_none(tiles, capsys):
    with pytest.raises(SystemExit):
        main(["recipe", "run", "A1", "--help"])
    assert "--only STEP" in capsys.readouterr().out
    assert main(["recipe", "show", "B", "--only", "summary"]) == 0
    assert "pipeline summary --backbone vgg16" in capsys.readouterr().out
