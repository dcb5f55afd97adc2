"""The commands as a user types them: on real photographs, from the first to the last."""

# ruff: noqa: F811  (pytest fixtures are imported and named again as arguments)
from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from projects import SIDE, TILES, Project, project, tiles  # noqa: F401
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from pipeline import FeatureCache, ImageClassifier
from pipeline.backbones import resolve
from pipeline.cli import main
from pipeline.engines import Embedder, TorchEngine
from pipeline.runs.run import Run


@pytest.fixture(scope="session")
def extracted(tiles, tmp_path_factory) -> Path:
    """A folder whose cache/ holds the tiles' features."""
    folder = tmp_path_factory.mktemp("extracted")
    assert main(["extract", "--data", str(tiles), "--cache-dir", str(folder / "cache")]) == 0
    return folder


@pytest.fixture
def warm(project, extracted) -> Project:
    """A project that has its features already."""
    shutil.copytree(extracted / "cache", project.folder / "cache")
    return project


def test_the_whole_story(tiles, warm, monkeypatch):
    for head in ("logistic", "linear"):
        assert warm.json("train-head", "--data", tiles, "--head", head)["runs"][0]["splits"]["val"]["accuracy"] == 1.0
    assert warm.run("finetune", "--data", tiles, "--epochs", 1, "--batch-size", 8)[0] == 0
    runs = warm.json("compare", "--data", "tiles")["runs"]
    assert {run.get("head") or run["strategy"] for run in runs} == {"logistic", "linear", "lp-discriminative"}
    accuracies = [run["splits"]["val"]["accuracy"] for run in runs]
    assert accuracies == sorted(accuracies, reverse=True)
    for run in runs:
        assert set(run) >= {"name", "kind", "dataset", "backbone", "classes", "splits", "seconds",
                            "trainable_parameters", "selection"}
        assert set(run["seconds"]) == {"extract", "train", "total"}
        assert set(run["splits"]["val"]) >= {"n", "accuracy", "accuracy_ci95", "balanced_accuracy", "macro_f1",
                                             "log_loss"}
        found = warm.json("predict", tiles / "val", "--run", run["name"])["predictions"]
        predicted = {os.path.relpath(each["path"], tiles): each["label"] for each in found}
        with (Path("runs") / run["name"] / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["filename", "split", "label", "prediction", "prob"]
        assert predicted == {row["filename"]: row["prediction"] for row in rows if row["split"] == "val"}


def test_the_cache_is_what_the_contract_says_with_bare_h5py(tiles, extracted):
    (path,) = (extracted / "cache" / "tiles").glob("*.h5")
    spec = resolve().spec
    assert path.name == f"efficientnet_lite0-{spec.sha256[:12]}.h5"
    with h5py.File(path) as file:
        assert set(file) == {"features", "labels", "splits", "paths", "digests", "skipped_paths", "skipped_reasons",
                             "meta"}
        assert (file["features"].shape, file["features"].dtype) == ((2 * TILES, 1280), np.float32)
        assert file["labels"].dtype == np.int64
        assert file["digests"].shape == (2 * TILES, 16)
        meta = json.loads(file["meta"][()])
        paths = [Path(os.fsdecode(bytes(name))) for name in file["paths"][:]]
        labels = [meta["classes"][label] for label in file["labels"][:]]
        splits = [bytes(split).decode() for split in file["splits"][:]]
    assert [path.parts[:2] for path in paths] == list(zip(splits, labels, strict=True))
    assert meta["spec"] == spec.fields
    assert meta["versions"]["torch"]


def test_cached_rows_are_the_backbones_own(tiles, extracted):
    (path,) = (extracted / "cache" / "tiles").glob("*.h5")
    backbone = resolve()
    engine = TorchEngine(backbone, "cpu")
    with FeatureCache.open(path) as cache:
        for name, row in list(zip(cache.paths, cache.read_rows(), strict=True))[::7]:
            alone = engine(backbone.transform(Image.open(tiles / name).convert("RGB"))[None])[0]
            assert np.linalg.norm(alone - row) < 1e-5 * np.linalg.norm(row)


def test_second_run_never_calls_the_backbone(tiles, warm, monkeypatch):
    monkeypatch.setattr(Embedder, "__init__", lambda *_: pytest.fail("the network was built"))
    done = warm.json("extract", "--data", tiles)
    assert (done["computed"], done["reused"], done["rows"], done["skipped"]) == (0, 2 * TILES, 2 * TILES, 0)
    assert set(done) >= {"path", "spec_sha256", "seconds", "images_per_second"}


def test_a_cache_hit_imports_no_torch(tiles, extracted):
    code = (f"import sys; from pipeline.cli import main; main(['extract', '--data', {str(tiles)!r}, '--cache-dir', "
            f"{str(extracted / 'cache')!r}]); sys.exit('torch' in sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_scikit_learn_head_imports_no_torch_and_the_torch_head_no_torchvision(tiles, extracted, tmp_path):
    for head, forbidden in (("logistic", {"torch"}), ("knn", {"torch"}), ("linear", {"torchvision", "timm"})):
        code = (f"import sys; from pipeline.cli import main; assert main(['train-head', '--head', {head!r}, '--data', "
                f"{str(tiles)!r}, '--cache-dir', {str(extracted / 'cache')!r}, '--runs-dir', {str(tmp_path)!r}]) == 0;"
                f"sys.exit(bool({forbidden!r} & set(sys.modules)))")
        subprocess.run([sys.executable, "-c", code], check=True)


def test_only_new_content_takes_a_forward_pass(tiles, warm):
    copy = warm.folder / "tiles"
    shutil.copytree(tiles, copy)
    (copy / "train" / "china" / "01.png").rename(copy / "train" / "flower" / "relabelled.png")
    (copy / "val" / "flower" / "00.png").rename(copy / "train" / "flower" / "moved to train.png")
    shutil.rmtree(copy / "val" / "china")
    assert warm.json("extract", "--data", copy)["computed"] == 0
    Image.fromarray(load_sample_images().images[0][200:300, 300:400]).save(copy / "val" / "flower" / "new.png")
    assert warm.json("extract", "--data", copy)["computed"] == 1


def test_a_changed_image_is_never_served_from_the_cache(tiles, warm):
    copy = warm.folder / "tiles"
    shutil.copytree(tiles, copy)
    victim = copy / "train" / "china" / "01.png"
    before = victim.stat()
    Image.open(victim).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(victim)
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    message = warm.error("train-head", "--data", copy)
    assert "1 images with other content ('train/china/01.png')" in message and "pipeline extract" in message
    assert warm.json("extract", "--data", copy)["computed"] == 1
    assert warm.run("train-head", "--data", copy)[0] == 0


def test_each_change_of_the_spec_makes_another_file(tiles, warm):
    paths = {warm.json("extract", "--data", tiles, *options)["path"]
             for options in ((), ("--precision", "bfloat16"), ("--layer", "blocks.10:mean"), ("--weights", "random"),
                             ("--backbone", "pixels"))}
    assert len(paths) == 5


def test_a_missing_cache_names_the_nearest_and_each_difference(tiles, warm):
    message = warm.error("train-head", "--data", tiles, "--precision", "bfloat16")
    assert "precision is 'float32' there, 'bfloat16' asked for" in message
    assert "--precision bfloat16" in message


@pytest.mark.skipif(os.name == "nt", reason="takes a pseudo-terminal")
def test_on_a_terminal_bars_name_what_runs_and_are_gone_before_a_line_is_printed(tiles, tmp_path):
    import pty
    import termios

    code = (f"from pipeline.cli import main; main(['extract', {str(tiles)!r}, '--backbone', 'pixels']); "
            f"main(['train-head', {str(tiles)!r}, '--backbone', 'pixels', '--head', 'ridge,knn'])")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 100))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, cwd=tmp_path)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # as Linux ends what is read from a terminal that nobody has open any more
        while part := os.read(ours, 65536):
            said += part
    os.close(ours)
    assert process.wait() == 0
    text = said.decode()
    drawn = dict(re.findall(r"([A-Z]\w+): +(\d+%)\|", text))  # the last state of each
    assert drawn["Hashing"] == drawn["Extracting"] == drawn["Training"] == "100%"
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]  # as they stay on the screen
    assert any(line.startswith("knn: accuracy ") for line in lines) and not any("%|" in line for line in lines)


def test_all_heads_in_one_table(tiles, warm):
    from pipeline.heads import HEADS

    code, out, err = warm.run("train-head", "--data", tiles, "--head", "all", "--epochs", 3)
    assert code == 0, err
    assert all(re.search(rf"^…{name}\s", out, re.M) for name in HEADS)
    assert "… is tiles-efficientnet_lite0-" in err
    table = [line for line in out.splitlines() if ": " not in line]
    assert len(table) > len(HEADS) and max(map(len, table)) <= 100


def test_unlabelled_images_are_extracted_and_predicted(tiles, warm):
    flat = warm.folder / "flat"
    flat.mkdir()
    for path in tiles.rglob("0[0-3].png"):
        shutil.copy(path, flat / f"{path.parent.name} {path.name}")
    (flat / "notes.png").write_text("no image")
    done = warm.json("extract", "--data", flat)
    assert (done["computed"], done["rows"], done["skipped"]) == (0, 8, 1)
    with FeatureCache.open(done["path"]) as cache:
        assert set(cache.labels) == {-1}
    assert "training images" in warm.error("train-head", "--data", flat)
    warm.run("train-head", "--data", tiles)
    code, out, err = warm.run("predict", flat, "--csv", "out.csv")
    assert code == 0 and "8 images classified, 1 unreadable" in out and "notes.png" in err
    with Path("out.csv").open(newline="") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert rows["notes.png"]["label"] == "" and rows["notes.png"]["reason"]
    assert all(row["label"] == name.split()[0] for name, row in rows.items() if row["label"])


def test_a_picture_gets_the_same_answer_however_it_comes(tiles, warm):
    warm.run("train-head", "--data", tiles, "--name", "run")
    path = tiles / "val" / "china" / "00.png"
    image = Image.open(path)
    classifier = ImageClassifier.load("run")
    for _ in range(4):  # until OpenVINO has compiled the network for one image, which on AVX2 sums in another order
        classifier.predict([path])
    answers = [classifier.predict([form])[0].probabilities
               for form in (path, str(path), path.read_bytes(), image, np.asarray(image))]
    assert all(answer == answers[0] for answer in answers)
    batch = classifier.predict([path, tiles / "val" / "flower" / "00.png"])
    assert batch[0].prob == pytest.approx(answers[0][batch[0].label], abs=1e-6)


def test_broken_files_are_named_and_no_row_shifts(tiles, warm):
    copy = warm.folder / "tiles"
    shutil.copytree(tiles, copy)
    truncated = copy / "train" / "china" / "01.png"
    truncated.write_bytes(truncated.read_bytes()[:500])
    os.mkfifo(copy / "train" / "flower" / "00pipe.jpg")
    (copy / "train" / "flower" / ".hidden.png").write_bytes(b"")
    (copy / "train" / "flower" / "readme.txt").write_text("text")
    done = warm.json("extract", "--data", copy)
    assert (done["rows"], done["computed"]) == (2 * TILES - 1, 0)
    with FeatureCache.open(done["path"]) as cache:
        assert all(path.split("/")[1] == cache.classes[label]
                   for path, label in zip(cache.paths, cache.labels, strict=True))
        reasons = dict(cache.skipped)
    assert "truncated" in reasons["train/china/01.png"] and reasons["train/flower/00pipe.jpg"]
    assert "gave no image" in warm.error("extract", "--data", copy, "--strict")


def test_limits_hold_in_every_command_and_are_remembered_with_the_cache(tiles, project):
    largest = max(path.stat().st_size for path in tiles.rglob("*.png"))
    done = project.json("extract", "--data", tiles, "--backbone", "pixels", "--max-bytes", largest - 1)
    assert done["skipped"] > 0
    assert project.run("train-head", "--data", tiles, "--backbone", "pixels")[0] == 0
    assert "None of the" in project.error("predict", tiles, "--max-pixels", SIDE * SIDE - 1)
    done = project.json("extract", "--data", tiles, "--backbone", "pixels")
    assert (done["skipped"], done["rows"]) == (0, 2 * TILES)


def test_bad_input_is_one_clear_line(tiles, warm):
    empty, one = warm.folder / "empty", warm.folder / "one"
    empty.mkdir()
    shutil.copytree(tiles / "train" / "china", one / "china")
    table = warm.folder / "table.csv"
    table.write_text(f"path,label\n{tiles}/train/china/99.png,china\n{tiles}/train/flower/01.png,flower\n")
    columns = warm.folder / "columns.csv"
    columns.write_text("where,what\na.png,x\n")
    junk = warm.folder / "junk.safetensors"
    junk.write_bytes(b"junk")
    for words, expected in [
        (["extrct"], "Did you mean 'extract'"),
        (["extract", "--bakbone", "x"], "Did you mean '--backbone'"),
        (["extract", "--batch-size", "many"], "invalid int value"),
        (["extract", "--data", "photo-tiles"], "phototiles"),
        (["extract", "--data", "/no/such/folder"], "/no/such/folder"),
        (["extract", "--data", empty], "mpty"),
        (["extract", "--data", one], "one class"),
        (["extract", "--data", table], "99.png"),
        (["extract", "--data", columns], "path"),
        (["extract", "--data", tiles, "--backbone", "efficientnet_lite9"], "efficientnet_lite"),
        (["extract", "--data", tiles, "--weights", junk], "junk.safetensors"),
        (["extract", "--data", tiles, "--layer", "blokcs.3"], "blocks.3"),
        (["extract", "--data", tiles, "--precision", "bfloat16", "--device", "gpu"], "device"),
        (["train-head", "--data", tiles, "--head", "logstic"], "Did you mean 'logistic'"),
        (["train-head", "--data", tiles, "--head", "knn", "--lr", "0.1"], "lr"),
        (["train-head", "--features", junk], "junk.safetensors"),
        (["train-head", "--data", tiles, "--set", "C"], "NAME=VALUE"),
        (["finetune", "--data", tiles, "--strategy", "hole"], "Did you mean 'whole'"),
        (["finetune", "--data", tiles, "--preset", "one-cicle"], "Did you mean 'one-cycle'"),
        (["finetune", "--data", tiles, "--epochs", "0"], "epochs"),
        (["predict", tiles, "--run", "nobody"], "nobody"),
        (["predict", "/no/such.jpg"], "No runs"),
        (["compare"], "No runs"),
        (["cache", "rm"], "--keep-newest"),
    ]:
        assert expected in warm.error(*words), words
    assert sorted(path.name for path in Path("cache").iterdir() if path.is_dir() and path.name != "engines"
                  ) == ["tiles"], "half-written"
    assert not Path("runs").exists() or not any(path.is_dir() for path in Path("runs").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="an unprivileged user gets the same from a read-only folder")
def test_a_folder_that_cannot_be_written_is_one_clear_line(tiles, warm):
    (warm.folder / "file").write_text("in the way")
    assert "file" in warm.error("extract", "--data", tiles, "--cache-dir", warm.folder / "file" / "cache")
    assert "file" in warm.error("train-head", "--data", tiles, "--runs-dir", warm.folder / "file" / "runs")


def test_a_busy_cache_is_exit_75_at_once(tiles, warm):
    from pipeline.store import CacheWriter, cache_path

    spec = resolve().spec
    with CacheWriter.open(cache_path(Path("cache"), "tiles", "efficientnet_lite0", spec), spec):
        begin = time.monotonic()
        assert "Another process" in warm.error("extract", "--data", tiles, code=75)
        assert time.monotonic() - begin < 2


def test_a_damaged_run_is_refused(tiles, warm):
    warm.run("train-head", "--data", tiles, "--name", "run")
    weights = Path("runs/run/head.safetensors")
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    assert "damaged" in warm.error("predict", tiles, "--run", "run")


def test_a_run_whose_backbone_changed_is_refused(tiles, warm):
    own, other = (resolve(weights="random", seed=seed).network().network.state_dict() for seed in (1, 2))
    path = warm.folder / "own.safetensors"
    save_file(own, path)
    warm.run("extract", "--data", tiles, "--weights", path)
    assert warm.run("train-head", "--data", tiles, "--weights", path, "--name", "run")[0] == 0
    assert warm.run("predict", tiles, "--run", "run")[0] == 0
    save_file(other, path)
    assert "is not the backbone" in warm.error("predict", tiles, "--run", "run", "--engine", "torch")
    path.unlink()
    assert "own.safetensors" in warm.error("predict", tiles, "--run", "run", "--engine", "torch")


def test_a_head_refuses_features_that_it_was_not_trained_on(tiles, warm):
    warm.run("train-head", "--data", tiles, "--name", "run")
    warm.run("extract", "--data", tiles, "--layer", "blocks.10:mean")
    warm.run("train-head", "--data", tiles, "--layer", "blocks.10:mean", "--name", "other")
    shutil.copy("runs/other/config.toml", "runs/run/config.toml")
    assert "trained on other features" in warm.error("predict", tiles, "--run", "run")


def test_a_run_of_that_name_with_other_settings_stays_unless_it_is_to_be_replaced(tiles, warm):
    def train(*words: object) -> str:
        code, _, err = warm.run("train-head", "--data", tiles, "--name", "run", *words)
        assert code == 0
        return err

    def runs() -> list[str]:
        return sorted(path.name for path in Path("runs").iterdir() if path.is_dir() and not path.name.startswith("."))

    assert not train()
    first = Run.open("run").config()
    assert "run has other settings and stays; this run is run-2" in train("--C", "10")
    assert "run-2 was there with the same settings, and is updated" in train("--C", "10")
    assert "this run is run-3" in train("--sweep", "--grid", "C=1,10")
    assert runs() == ["run", "run-2", "run-3"] and Run.open("run").config() == first
    assert {path.name for path in Path("runs/run").iterdir()} == {
        "metrics.json", "predictions.csv", "config.toml", "head.json", "head.safetensors"}
    assert "run was replaced (accuracy " in train("--C", "100", "--overwrite")
    assert runs() == ["run", "run-2", "run-3"] and Run.open("run").config() != first


def test_folders_of_the_same_name_are_told_apart_by_their_place(tiles, project):
    images = {name: project.folder / name / "images" for name in ("shop", "zoo", "copy")}
    shutil.copytree(tiles, images["shop"])
    for path in tiles.rglob("*.png"):
        label = {"china": "elephant", "flower": "ape"}[path.parent.name]
        (images["zoo"] / path.parent.parent.name / label).mkdir(parents=True, exist_ok=True)
        Image.open(path).rotate(90).save(images["zoo"] / path.parent.parent.name / label / path.name)

    def extract(name: str, *words: str) -> tuple[str, int]:
        done = project.json("extract", "--data", images[name], "--backbone", "pixels", *words)
        return Path(done["path"]).parent.name, done["computed"]

    assert (extract("shop"), extract("zoo")) == (("images", 2 * TILES), ("zoo-images", 2 * TILES))
    for name, dataset in (("shop", "images"), ("zoo", "zoo-images"), ("shop", "images")):
        (run,) = project.json("train-head", "--data", images[name], "--backbone", "pixels")["runs"]
        assert run["name"] == f"{dataset}-pixels-logistic" and extract(name) == (dataset, 0)
    shutil.copytree(images["shop"], images["copy"])
    assert extract("copy") == ("images", 0)  # the same images
    images["shop"].parent.rename(project.folder / "store")
    images["shop"] = project.folder / "store" / "images"
    assert extract("shop") == ("images", 0)  # moved, not another one
    assert extract("zoo", "--dataset-name", "animals")[0] == "animals"


def test_runs_are_listed_shown_and_removed(tiles, warm):
    for words in (["--head", "ridge"], ["--head", "knn", "--set", "k=3"]):
        warm.run("train-head", "--data", tiles, *words)
    code, out, _ = warm.run("runs")
    assert code == 0 and out.startswith("data set tiles · features efficientnet_lite0 · on val ")
    newest = out.splitlines()[2]
    assert re.match(r"tiles-efficientnet_lite0-knn +k=3 +[01]\.\d{4} \([01]\.\d{3}-[01]\.\d{3}\) ", newest)
    assert [run["name"] for run in warm.json("runs", "ls", "--data", "tiles")["runs"]] == [
        "tiles-efficientnet_lite0-knn", "tiles-efficientnet_lite0-ridge"]
    assert warm.run("runs", "ls", "--data", "others")[1] == "no runs in runs\n"
    shown = warm.json("runs", "show", "tiles-efficientnet_lite0-knn")
    assert shown["told"] == "k=3" and shown["config"]["head"]["settings"]["k"] == 3
    assert "knn on efficientnet_lite0, tiles: k=3" in warm.run("runs", "show", "tiles-efficientnet_lite0-knn")[1]
    assert "Did you mean" in warm.error("runs", "rm", "tiles-efficientnet_lite0-kn")
    assert warm.json("runs", "rm", "tiles-efficientnet_lite0-knn", "--dry-run")["removed"]
    warm.run("runs", "rm", "tiles-efficientnet_lite0-knn")
    assert [run["name"] for run in warm.json("runs")["runs"]] == ["tiles-efficientnet_lite0-ridge"]


def test_predict_takes_the_best_run_of_the_newest_data_set(tiles, warm):
    accuracies = {}
    warm.run("extract", "--data", tiles, "--backbone", "pixels")
    for words in (["--head", "logistic"], ["--head", "knn", "--backbone", "pixels"]):
        (run,) = warm.json("train-head", "--data", tiles, *words)["runs"]
        accuracies[run["name"]] = run["splits"]["val"]["accuracy"]
    best = max(accuracies, key=accuracies.__getitem__)
    assert len(set(accuracies.values())) == 2  # the last one is not the best
    assert best != list(accuracies)[-1]
    _, _, err = warm.run("predict", tiles / "val" / "china")
    assert f"Using {best}, the best of 2 runs on tiles (accuracy {accuracies[best]:.4f} on" in err


def test_cache_commands(tiles, warm):
    (entry,) = warm.json("cache", "ls")["caches"]
    assert (entry["dataset"], entry["rows"], entry["state"]) == ("tiles", 2 * TILES, "complete")
    report = warm.json("cache", "verify", "--recompute", 5)
    assert report["ok"] and report["problems"] == []
    assert report["caches"][0]["recomputed"] == 5 and report["caches"][0]["deviation"] < 1e-5
    path = Path(entry["path"])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    code, out, err = warm.run("cache", "verify")
    assert code == 1 and "features" in out and "error: " in err
    done = warm.json("extract", "--data", tiles)
    assert 0 < done["computed"] <= 2 * TILES
    assert warm.run("cache", "verify")[0] == 0
    warm.run("train-head", "--data", tiles)
    warm.run("extract", "--data", tiles, "--backbone", "pixels")
    removed = warm.json("cache", "rm", "--unused", "--dry-run")["removed"]
    assert len(removed) == 2, "the one set aside, and that of pixels"
    assert warm.json("cache", "rm", "--unused")["removed"] == removed
    assert [each["state"] for each in warm.json("cache", "ls")["caches"]] == ["complete"]


def test_an_interrupted_extract_says_what_is_kept_and_goes_on(tiles, tmp_path):
    many = tmp_path / "many"
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        (many / name).mkdir(parents=True)
        for number in range(150):
            top, left = 2 * (number // 15), 20 * (number % 15)
            Image.fromarray(photo[top : top + 300, left : left + 300]).save(many / name / f"{number}.jpg")
    # a shell's background jobs, and what they start, ignore Ctrl-C
    script = ("import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
              "runpy.run_module('pipeline', run_name='__main__')")
    command = [sys.executable, "-c", script, "extract", "--data", str(many), "--cache-dir", str(tmp_path / "cache")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cache").glob("many/*.partial/*.shard")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "kept" in err and "Traceback" not in err
    done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert report["rows"] == 300 and 0 < report["reused"] < 300 and report["computed"] == 300 - report["reused"]


def test_help_answers_at_once():
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "pipeline", "--help"], check=True, capture_output=True)
    assert time.monotonic() - begin < 5  # well under a second on a quiet machine; this one may be busy


def test_every_command_explains_itself(capsys):
    from pipeline.cli import build_parser

    verbs = next(action.choices for action in build_parser()._subparsers._group_actions)
    for words in ([name] for name in verbs):
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--help"])
        assert stopped.value.code == 0
        assert f"usage: pipeline {words[0]}" in capsys.readouterr().out
    assert {"extract", "train-head", "finetune", "compare", "predict", "report", "cache", "backbones"} <= set(verbs)


def parsers(parser, name: str = "pipeline") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command's parser with its name."""
    yield name, parser
    for action in parser._actions:
        for verb, child in (action.choices or {}).items() if isinstance(action, argparse._SubParsersAction) else ():
            yield from parsers(child, f"{name} {verb}")


def test_every_flag_says_what_it_does():
    from pipeline.cli import build_parser

    silent, unnamed = [], []
    for name, parser in parsers(build_parser()):
        for action in parser._actions:
            flag = f"{name} {(action.option_strings or [action.dest])[0]}"
            silent += [flag] if not action.help and not isinstance(action, argparse._SubParsersAction) else []
            unnamed += [flag] if action.metavar == "X" else []
    assert (silent, unnamed) == ([], [])


def test_the_help_names_every_setting_of_every_head_with_its_heads():
    from pipeline.cli.flags import HEAD_SETTINGS, OTHER_SETTINGS
    from pipeline.heads import HEADS

    flags = {flag[2:].replace("-", "_"): words for flag, (_, _, words) in HEAD_SETTINGS.items()}
    flags["batch_size"] = "linear mlp"
    others = {name.strip() for part in OTHER_SETTINGS.split(";") for name in part.split(" of ")[0].split(",")}
    for setting, words in flags.items():
        having = {head for head, entry in HEADS.items() if setting in entry.settings}
        named = {head for head in HEADS if re.search(rf"(?<![\w-]){head}(?![\w-])", words)}
        assert having and ("all" in words or having == named), setting
        for heads, default in re.findall(r"((?:[\w-]+, )*[\w-]+) \(([\d.]+|[a-z]+)\)", words):
            told = {str(HEADS[head].settings[setting]) for head in heads.split(", ") if head in HEADS}
            assert told in ({default}, {f"{default}.0"}), (setting, heads)
    every = {setting for entry in HEADS.values() for setting in entry.settings}
    assert every - flags.keys() - {"seed", "groups"} == others  # groups of columns are chosen, not typed


def test_pipeline_alone_helps_and_says_its_version(capsys):
    assert main([]) == 0
    assert "usage: pipeline" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    import pipeline

    assert stopped.value.code == 0 and capsys.readouterr().out == f"pipeline {pipeline.__version__}\n"
    assert {"extract", "Run", "__version__"} <= set(dir(pipeline))


def test_data_need_no_flag_and_built_in_ones_are_told(tiles, project):
    assert project.json("extract", tiles, "--backbone", "pixels")["rows"] == 2 * TILES
    assert "Give the data once" in project.error("extract", tiles, "--data", tiles)
    error = project.error("train-head", tiles, "--backbone", "pixels", "--precision", "float16", "--cache-dir", "other")
    assert "--precision float16 --cache-dir other`" in error
    _, _, err = project.run("train-head", "--backbone", "pixels", "--limit", 40)
    assert "note: --data was left out: these are the built-in images, phototiles[:40]." in err



def test_python_use_as_the_readme_shows(tiles, warm):
    import pipeline

    done = pipeline.extract(str(tiles))
    with pipeline.FeatureCache.open(done.path) as cache:
        X, y = cache.split("train")
    assert X.shape == (len(y), 1280)
    head = pipeline.LinearHead(epochs=5).fit(X, y)
    assert head.predict_proba(X).shape == (len(y), 2)
    run = pipeline.train_head("ridge", str(tiles))
    image = tiles / "val" / "china" / "00.png"
    assert pipeline.ImageClassifier.load(run).predict([image])[0].label == "china"
    (found,) = pipeline.predict(image)
    assert found.label == "china" and pipeline.predict(np.asarray(Image.open(image)), run)[0].label == "china"
    assert pipeline.predict(Image.open(image), run)[0].probabilities == pytest.approx(found.probabilities)
    (scored,) = pipeline.evaluate_runs([run], str(tiles))
    assert scored.scores["accuracy"] == run.metrics["splits"]["val"]["accuracy"]
    assert "ridge" in pipeline.HEADS and pipeline.report(run.name).is_file()
    assert pipeline.learning_curve(["ridge"], str(tiles), shots=[2], repeats=1)["points"][0]["n"] == 4


def test_a_sweep_chooses_on_train_alone_and_tells_what_it_tried(tiles, warm):
    run = warm.json("train-head", "--data", tiles, "--head", "logistic", "--grid", "C=0.001,1", "--folds", 3)["runs"][0]
    assert run["selection"] == "cv"
    with Path("runs", run["name"], "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["C"] for row in rows] == ["0.001", "1"]
    assert [row["chosen"] for row in rows].count("True") == 1
    assert run["choice"]["candidates"] == 2 and 1 <= run["choice"]["in_reach"] <= 2
    assert run["choice"]["settings"]["C"] == float(next(row["C"] for row in rows if row["chosen"] == "True"))
    code, out, _ = warm.run("train-head", "--data", tiles, "--head", "logistic", "--grid", "C=0.001,1", "--folds", 3)
    assert code == 0 and "the least log loss of the" in out and "3-fold cross-validation on train" in out
    assert warm.json("train-head", "--data", tiles, "--head", "knn", "--sweep", "--select-on", "val")["runs"][0][
        "selection"] == "val"
    assert "cv" in warm.error("train-head", "--data", tiles, "--sweep", "--select-on", "test")
    assert "NAME=VALUE" in warm.error("train-head", "--data", tiles, "--grid", "C")
    assert "Did you mean" in warm.error("train-head", "--data", tiles, "--grid", "scalin=none")


def test_repeats_tell_the_spread_over_seeds(tiles, warm):
    run = warm.json("train-head", "--data", tiles, "--head", "linear", "--epochs", 2, "--repeats", 3)["runs"][0]
    assert len(run["repeats"]["val"]["accuracies"]) == 3
    assert run["repeats"]["val"]["mean"] == pytest.approx(np.mean(run["repeats"]["val"]["accuracies"]))
    for words in (["knn"], ["logistic", "--C", 1]):
        code, out, err = warm.run("train-head", "--data", tiles, "--repeats", 3, "--head", *words)
        assert code == 0 and "standard deviation" not in out
        assert "nothing in it is random" in err


def test_what_a_head_chose_by_itself_is_said_and_a_head_without_epochs_was_not_chosen_by_the_last(tiles, warm):
    code, out, _ = warm.run("train-head", "--data", tiles)
    assert code == 0 and "the strongest penalty of" in out and "training images left out" in out
    runs = warm.json("train-head", "--data", tiles, "--head", "logistic,ridge,knn,linear")["runs"]
    assert {run["head"]: run["selection"] for run in runs} == {
        "logistic": "cv", "ridge": "cv", "knn": "none", "linear": "val"}
    assert {run["head"] for run in runs if run.get("choice")} == {"logistic", "ridge"}
    assert warm.json("train-head", "--data", tiles, "--C", 1)["runs"][0]["selection"] == "none"
    code, out, err = warm.run("train-head", "--data", tiles, "--C", 1e4, "--set", "max_iter=1")
    assert code == 0 and "optimum was not reached" in err


def test_a_cache_that_is_not_there_is_not_called_damaged(tiles, warm):
    for verb in ("verify", "rm"):
        assert "There is no cache 'cache/tile/x.h5'" in warm.error("cache", verb, "cache/tile/x.h5")


def test_few_shot_figures_and_the_learning_curve(tiles, warm):
    found = warm.json("learning-curve", "--data", tiles, "--head", "ridge,knn", "--sizes", "6,12,24", "--repeats", 2)
    assert [(each["head"], each["n"]) for each in found["points"]] == [
        (head, n) for head in ("ridge", "knn") for n in (6, 12, 24)]
    assert {each["head"] for each in found["forecasts"]} == {"ridge", "knn"}
    code, out, _ = warm.run("train-head", "--data", tiles, "--head", "ridge", "--shots", "1,2,4", "--repeats", 2)
    assert code == 0 and "with twice the labels expect" in out
    assert [path.name for path in Path("runs").iterdir()] == ["learning-curves"]
    again = ("learning-curve", "--data", tiles, "--head", "ridge", "--sizes", "6,12,24", "--repeats", 2)
    assert warm.run(*again)[0] == 0  # takes the place of the first one, not of that of other settings
    assert sorted(path.name.partition("-")[2].partition("-")[2] for path in Path("runs/learning-curves").iterdir()) == [
        "knn.json", "ridge-2.json", "ridge.json"]
    assert "invalid" in warm.error("learning-curve", "--data", tiles, "--shots", "a,b")


def test_a_cache_in_parts_serves_every_command(tiles, warm, tmp_path):
    photos = tmp_path / "tiles"
    shutil.copytree(tiles, photos)
    one = warm.json("train-head", "--data", tiles)["runs"][0]
    done = warm.json("extract", "--data", photos, "--part-rows", 10)
    assert (done["computed"], done["rows"]) == (0, 2 * TILES)
    (entry,) = warm.json("cache", "ls")["caches"]
    parts = sorted(Path(entry["path"]).with_suffix(".parts").iterdir())
    assert (entry["path"], entry["rows"], entry["state"], len(parts)) == (done["path"], 2 * TILES, "complete", 4)
    run = warm.json("train-head", "--data", photos)["runs"][0]
    assert run["splits"] == one["splits"]
    report = warm.json("cache", "verify", done["path"], "--recompute", 4)["caches"][0]
    assert report["recomputed"] == 4 and report["deviation"] < 1e-5
    warm.run("extract", "--data", photos, "--backbone", "pixels", "--part-rows", 20)
    (pixels,) = (one["path"] for one in warm.json("cache", "ls")["caches"] if one["backbone"] == "pixels")
    joined = warm.json("train-head", "--features", done["path"], pixels, "--name", "joined")["runs"][0]
    assert joined["splits"]["val"]["n"] == 8
    warm.json("audit", "--features", done["path"], "--runs")


def test_one_image_more_in_a_cache_of_parts_costs_one_forward_pass(tiles, warm, tmp_path):
    photos = tmp_path / "tiles"
    shutil.copytree(tiles, photos)
    path = Path(warm.json("extract", "--data", photos, "--part-rows", 10)["path"])
    before = {part: part.stat().st_ino for part in path.with_suffix(".parts").iterdir()}
    Image.fromarray(load_sample_images().images[0][200:296, 200:296]).save(photos / "train" / "china" / "new.png")
    assert "out of date: 1 images new" in warm.error("train-head", "--data", photos)
    assert warm.json("extract", "--data", photos)["computed"] == 1
    after = {part: part.stat().st_ino for part in path.with_suffix(".parts").iterdir()}
    assert before.items() < after.items() and len(after) == 5
    lost = sorted(before)[1]
    lost.unlink()
    assert f"{lost} is missing, a part of" in warm.error("train-head", "--data", photos)
    code, out, _ = warm.run("cache", "verify")
    assert code == 1 and f"{lost.name} is missing" in out
    assert warm.json("extract", "--data", photos)["computed"] == 8
    assert warm.run("cache", "verify")[0] == 0
    assert warm.json("cache", "rm", path)["removed"] == [str(path)]
    assert not path.with_suffix(".parts").exists()
    assert "'0' is no whole number from 1 up" in warm.error("extract", "--data", photos, "--part-rows", 0)


def test_output_survives_a_pipe_that_knows_few_characters(tmp_path):
    folder = tmp_path / "photos"
    for name, photo in zip(("hoa đào", "梅花"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(photo[64 * number : 64 * number + 64, :64]).save(folder / name / f"{number}.png")
    for encoding in ("ascii", "cp1252"):
        for words in (["extract", folder, "--backbone", "pixels"], ["train-head", folder, "--backbone", "pixels"],
                      ["predict", folder / "梅花"], ["runs"], ["cache", "ls"]):  # fmt: skip
            done = subprocess.run([sys.executable, "-m", "pipeline", *map(str, words)], cwd=tmp_path, encoding=encoding,
                                  capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding})
            assert done.returncode == 0, done.stderr
    assert "photos" in done.stdout


def test_the_likeliest_labels_are_told_as_many_as_asked_for(tiles, warm):
    warm.run("train-head", "--data", tiles)
    (found,) = warm.json("predict", tiles / "val/china/00.png", "--topk", 5)["predictions"]
    assert [each["label"] for each in found["top"]] == ["china", "flower"]
    assert sum(each["prob"] for each in found["top"]) == pytest.approx(1)
    assert "flower 0." in warm.run("predict", tiles / "val/china/00.png", "--topk", 2)[1]


def test_caches_are_listed_with_what_they_are_of(tiles, warm):
    warm.run("extract", tiles, "--backbone", "pixels", "--precision", "float16")
    code, out, _ = warm.run("cache", "ls")
    lines = out.splitlines()
    assert code == 0 and lines[0].startswith("data set tiles · 2 classes · /")
    assert lines[1].split() == ["file", "rows", "precision", "size", "age", "state"]
    assert lines[-1].startswith("2 caches, ") and lines[-1].endswith(", in cache")
    assert any("cache/tiles/pixels-" in line and " float16 " in line for line in lines)
    assert max(map(len, lines)) <= 100
    assert {entry["classes"] for entry in warm.json("cache", "ls")["caches"]} == {2}


def test_backbones_lists_those_of_a_name_and_those_that_need_no_download(capsys):
    assert main(["backbones", "efficientnet_lite", "--offline", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["backbones"]
    assert "efficientnet_lite0" in {each["name"] for each in found}
    assert all(each["offline"] and "efficientnet_lite" in each["name"] for each in found)
