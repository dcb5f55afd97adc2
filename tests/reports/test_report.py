"""The page about a run, in a real browser: what is there, that it works, and that it asks nothing of anybody."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import pipeline
from pipeline.cli import main
from pipeline.reports import write_comparison, write_report
from pipeline.reports.comparison_page import disputed
from pipeline.reports.pictures import chosen, embedded
from pipeline.reports.plots import Point, Series, _ticks, chart
from pipeline.runs.run import Run

HOSTILE_CLASS = "<img src=x onerror=document.title='hacked'>"
HOSTILE_FILE = "\"'><script>document.title='hacked'<!-- 'x.png"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
SECTIONS = ("figures", "confusion", "gallery", "map", "cost", "calibration", "curve", "history", "augmented", "again")


@pytest.fixture(scope="session")
def studio(tmp_path_factory) -> Path:
    """A project with a head, a fine-tuned network, and names of classes and files that attack the page."""
    folder = tmp_path_factory.mktemp("studio")
    for name, photo in zip((HOSTILE_CLASS, "flower"), load_sample_images().images, strict=True):
        for number in range(24):
            top, left = 64 * (number // 8), 64 * (number % 8)
            place = folder / "data" / ("val" if number % 3 == 0 else "train") / name
            place.mkdir(parents=True, exist_ok=True)
            file = HOSTILE_FILE if number == 0 else f"{number}.png"
            Image.fromarray(photo[top : top + 64, left : left + 64]).save(place / file)
    here = Path.cwd()
    os.chdir(folder)
    try:
        pipeline.extract("data", "pixels")
        pipeline.train_head("ridge", "data", "pixels", name="ridge")
        settings = pipeline.FinetuneSettings(strategy="head-only", epochs=2, batch_size=8)
        pipeline.finetune("data", settings=settings, name="tuned")
        pipeline.train_head("nearest-centroid", "data", "pixels", name="centroid")
        from pipeline.runs.scores import compare
        from pipeline.stage_two.train import learning_curve

        learning_curve(["ridge", "knn"], "data", "pixels", sizes=[8, 16, 32], repeats=2)
        for name in ("ridge", "tuned"):
            write_report(Run.open(name))
        write_comparison(compare(baseline="ridge"), Path("compare.html"))
    finally:
        os.chdir(here)
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium with a profile of its own, and no network."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no chromium on this machine")
    with playwright.sync_playwright() as engine:
        context = engine.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")), executable_path=program, headless=True, args=FLAGS, offline=True
        )
        yield context
        context.close()


class Visit:
    """A page, and whatever it complained of or asked for."""

    def __init__(self, context, path: Path, **emulated):
        self.page, self.complaints, self.requests = context.new_page(), [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.emulate_media(**emulated)
        self.page.goto(path.as_uri())

    def background(self) -> tuple[int, ...]:
        colour = self.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return tuple(int(part) for part in colour.strip("rgb()").split(","))


@pytest.fixture
def visit(browser, studio):
    visits = []

    def go(run: str = "ridge", **emulated) -> Visit:
        page = studio / "compare.html" if run == "compare" else studio / "runs" / run / "report.html"
        visits.append(Visit(browser, page, **emulated))
        return visits[-1]

    yield go
    for one in visits:
        one.page.close()
        assert one.complaints == []
        assert [url for url in one.requests if not url.startswith("data:")] == [one.requests[0]]
        assert one.requests[0].startswith("file:")


@pytest.mark.parametrize("run", ["ridge", "tuned"])
def test_every_section_is_there_and_headed(visit, run):
    page = visit(run).page
    for section in SECTIONS:
        assert page.locator(f"#{section} h2").is_visible(), section
        assert page.locator(f"nav a[href='#{section}']").count() == 1
    accuracy = json.loads((Path(page.url.removeprefix("file://")).parent / "metrics.json").read_text())
    assert f"{100 * accuracy['splits']['val']['accuracy']:.1f} %" in page.locator(".headline").inner_text()


def test_a_cell_of_the_confusion_matrix_opens_the_images_behind_it(visit):
    page = visit().page
    for cell in page.locator(".cell").all():
        count = int(cell.inner_text())
        cell.click()
        assert page.locator("#dialog").is_visible()
        assert page.locator("#dialog-grid img").count() == count
        title = page.locator("#dialog-title").inner_text()
        assert title == f"{cell.get_attribute('data-label')} predicted as {cell.get_attribute('data-prediction')}"
        page.get_by_role("button", name="Close").click()
        assert not page.locator("#dialog").is_visible()


def test_all_of_it_works_from_the_keyboard(visit):
    page = visit().page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    cell = page.locator(".cell").first
    cell.focus()
    page.keyboard.press("Enter")
    assert page.locator("#dialog").is_visible()
    assert page.evaluate("document.activeElement.textContent") == "Close"
    page.keyboard.press("Escape")
    assert not page.locator("#dialog").is_visible()
    assert cell.evaluate("cell => cell === document.activeElement")
    page.locator("#plane").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#told").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#told").inner_text() not in ("", first)
    assert page.locator("#tip img").is_visible()


def test_the_map_shows_every_image_by_class_split_or_correctness(visit):
    page = visit().page
    assert page.locator("#plane circle").count() == 48
    assert page.locator("#projection option").all_inner_texts() == ["t-SNE", "PCA"]
    for colour, words in (("split", {"train", "val"}), ("right", {"right", "wrong"}),
                          ("label", {HOSTILE_CLASS, "flower"})):  # fmt: skip
        page.locator("#colour").select_option(colour)
        assert set(page.locator("#key li").all_inner_texts()) <= words
    before = page.locator("#plane circle").first.get_attribute("cx")
    page.locator("#projection").select_option("PCA")
    assert page.locator("#plane circle").first.get_attribute("cx") != before
    page.locator("#plane circle").nth(3).hover(force=True)
    assert page.locator("#tip img").is_visible()


def test_the_gallery_sorts_by_confidence(visit):
    page = visit().page
    page.locator("[data-show=right]").click()
    texts = page.locator("#grid b").all_inner_texts()
    shares = [float(text.split()[-2]) for text in texts]
    assert len(shares) > 3 and shares == sorted(shares)
    assert page.locator("[data-show=right]").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("page", ["ridge", "compare"])
def test_light_and_dark_follow_the_system_and_the_button(visit, page):
    light, dark = visit(page, color_scheme="light"), visit(page, color_scheme="dark")
    assert min(light.background()) > 200 and max(dark.background()) < 60
    dark.page.locator("#theme").click()
    assert min(dark.background()) > 200
    light.page.locator("#theme").click()
    assert max(light.background()) < 60


@pytest.mark.parametrize(("page", "least"), [("ridge", 20), ("compare", 0)])
def test_every_picture_has_an_alternative_text(visit, page, least):
    page = visit(page).page
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("section img").count() > least
    assert page.locator("svg[role=img]:not([aria-label])").count() == 0
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


@pytest.mark.parametrize("page", ["ridge", "tuned", "compare"])
def test_a_phone_needs_no_sideways_scrolling(visit, page):
    page = visit(page).page
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_names_of_files_and_classes_stay_text(visit):
    page = visit().page
    page.wait_for_timeout(200)
    assert page.title() == "ridge"
    assert page.locator("main script").count() == 0
    assert HOSTILE_CLASS in page.locator(".matrix").inner_text()


def test_a_fine_tuned_network_shows_its_curves_and_a_head_says_that_it_has_none(visit):
    assert visit("tuned").page.locator("#history svg").count() == 2
    assert "no curves" in visit("ridge").page.locator("#history").inner_text()


def test_the_learning_curve_has_a_band_for_each_head_and_says_what_more_labels_would_give(visit):
    page = visit().page
    assert page.locator("#curve .band").count() == 2
    assert "ridge: with twice the labels expect 0." in page.locator("#curve").inner_text()
    assert "pipeline learning-curve --data data" in visit("tuned").page.locator("#curve code").inner_text()


def test_a_learning_curve_that_is_rubbish_is_passed_over(studio, tmp_path):
    shutil.copytree(studio / "runs" / "ridge", tmp_path / "ridge")
    sound = next((studio / "runs" / "learning-curves").glob("*-ridge.json"))
    (tmp_path / "learning-curves").mkdir()
    lacking = '{"head": "a", "split": "val", "points": [{}], "forecasts": []}'
    for number, content in enumerate(("{", "[]", "{}", lacking)):
        (tmp_path / "learning-curves" / sound.name.replace("ridge", str(number))).write_text(content)
    text = write_report(Run.open(tmp_path / "ridge"), cache_dir=tmp_path).read_text()
    assert "None was drawn on these features" in text


def test_the_comparison_tells_differences_classes_and_the_images_on_which_runs_disagree(visit, studio):
    page = visit("compare").page
    runs = {name: Run.open(name, studio / "runs") for name in ("ridge", "tuned", "centroid")}
    for section in ("table0", "cost0", "classes0", "disputed0"):
        assert page.locator(f"#{section} h2").is_visible()
        assert page.locator(f"nav a[href='#{section}']").count() == 1
    for name, run in runs.items():
        row = page.locator("#table0 tbody tr").filter(has_text=name).first.inner_text()
        assert f"{100 * run.metrics['splits']['val']['accuracy']:.1f}" in row
    assert page.locator("#table0 li").count() == 2  # each of the others with the baseline
    assert "on 16 images" in page.locator("#table0 li").last.inner_text()
    named = {name: {row["filename"]: row["prediction"] for row in run.predictions("val")} for name, run in runs.items()}
    differ = [file for file in named["ridge"] if len({own[file] for own in named.values()}) > 1]
    assert differ and page.locator("#disputed0 img").count() == len(differ)
    assert f"{len(differ)} images" in page.locator("#disputed0 p").inner_text()
    choice = page.locator("#disputed0 summary").first
    choice.focus()
    page.keyboard.press("Enter")
    assert choice.evaluate("choice => choice.parentElement.open")
    assert page.title() == "Comparison of 3 runs" and page.locator("main script").count() == 0
    assert page.locator("#classes0 tbody tr").count() == 2


def test_compare_writes_the_page_that_it_is_asked_for(studio, monkeypatch, capsys):
    monkeypatch.chdir(studio)
    assert main(["compare", "--html", "again.html", "--json"]) == 0
    out, error = capsys.readouterr()
    assert len(json.loads(out)["runs"]) == 3 and "look at again.html" in error
    assert "against the baseline" not in Path("again.html").read_text()
    assert main(["compare", "--html", "data/train"]) == 2
    assert "Cannot write 'data/train'" in capsys.readouterr().err


def test_of_many_images_on_which_runs_disagree_the_most_evenly_split_are_shown():
    def row(number, prediction):
        return {"filename": f"{number:03}.png", "label": "a", "prediction": prediction, "prob": "0.9"}

    rows = {name: [row(number, "b" if number < wrong else "a") for number in range(300)]
            for name, wrong in (("one", 250), ("two", 40), ("three", 40), ("four", 0))}  # fmt: skip
    count, shown = disputed(rows, Path("nowhere"))
    assert (count, len(shown)) == (250, 120)
    assert {len(image["said"]) for image in shown} == {2}
    assert shown[0]["said"][0] == {"prediction": "a", "right": True, "runs": ["four"]}


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_every_plot_of_the_page_comes_as_a_file_of_its_own(studio, tmp_path, monkeypatch, kind):
    if kind == "png":
        pytest.importorskip("resvg_py")
    monkeypatch.chdir(studio)
    for run, own in (("ridge", {"learning-curve", "map-pca", "map-tsne"}), ("tuned", {"training-loss"})):
        assert main(["report", "--run", run, "--out", str(tmp_path / "page.html"), "--plots", str(tmp_path / run),
                     "--format", kind]) == 0  # fmt: skip
        names = {path.stem for path in (tmp_path / run).iterdir()}
        assert own | {"calibration", "accuracy-and-seconds", "confusion"} <= names
        for path in (tmp_path / run).iterdir():
            assert path.suffix == f".{kind}"
            if kind == "svg":
                tree = ElementTree.parse(path).getroot()  # sound XML, whatever the classes' names hold
                assert tree.tag.endswith("svg") and "var(" not in path.read_text()
            else:
                colours = Image.open(path).convert("RGB").getcolors(1 << 20)
                assert max(colours)[1] == (255, 255, 255) and len(colours) > 20


def test_a_format_that_is_unknown_is_said_before_any_work(studio, monkeypatch, capsys):
    monkeypatch.chdir(studio)
    assert main(["report", "--run", "ridge", "--plots", "plots", "--format", "pgn"]) == 2
    assert "Did you mean 'png'" in capsys.readouterr().err and not Path("plots").exists()


def test_the_command_on_the_page_makes_the_run_again(studio, tmp_path, monkeypatch):
    from pipeline.reports.content import command

    monkeypatch.chdir(studio)
    import shlex

    before = Run.open("ridge")
    words = shlex.split(command(before))
    assert words[:2] == ["pipeline", "train-head"]
    assert main([*words[1:], "--runs-dir", str(tmp_path)]) == 0
    again = Run.open("ridge", tmp_path)
    assert again.metrics["splits"] == before.metrics["splits"]


def test_make_report_tells_where_the_page_is(studio, monkeypatch, capsys):
    monkeypatch.chdir(studio)
    assert main(["report", "--run", "ridge", "--out", "page.html", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"path": "page.html", "bytes": Path("page.html").stat().st_size}
    assert main(["report", "--run", "rigde"]) == 2
    assert "Did you mean 'ridge'" in capsys.readouterr().err


def test_without_images_and_cache_the_page_still_tells_the_figures(studio, tmp_path):
    folder = shutil.copytree(studio / "runs" / "ridge", tmp_path / "ridge")
    config = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(config.replace(str(studio / "data"), str(tmp_path / "gone")))
    text = write_report(Run.open(folder), cache_dir=tmp_path).read_text()
    assert "there is no map" in text and "right on" in text


def test_ten_thousand_images_stay_below_ten_megabytes(tmp_path):
    photo = load_sample_images().images[0]
    Image.fromarray(photo[:128, :128]).save(tmp_path / "one.png")
    rows = []
    for number in range(10_000):
        right = number % 10 != 0
        (tmp_path / f"{number}.png").hardlink_to(tmp_path / "one.png")
        rows.append({"filename": f"{number}.png", "label": "a", "prediction": "a" if right else "b", "prob": "0.9"})
    indices = chosen(rows)
    shown = embedded(tmp_path, [rows[index] for index in indices])
    assert len(json.dumps(shown)) < 7_000_000
    assert len(shown) > 200
    wrong = sum(image["label"] != image["prediction"] for image in shown)
    assert 0 < wrong < len(shown)


@pytest.mark.slow  # half a minute
def test_the_whole_page_about_ten_thousand_images_stays_below_ten_megabytes_and_says_what_is_a_sample(tmp_path):
    data = tmp_path / "data"
    for split, total in (("train", 50), ("val", 5000)):
        for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
            place = data / split / name
            place.mkdir(parents=True)
            for number in range(total):
                file, top, left = place / f"{number}.png", number % 50 * 5, number % 50 * 9
                if number < 50:
                    Image.fromarray(photo[top : top + 128, left : left + 128]).save(file)
                else:
                    file.hardlink_to(place / f"{number % 50}.png")
    pipeline.extract(str(data), "pixels", cache_dir=tmp_path / "cache")
    run = pipeline.train_head("nearest-centroid", str(data), "pixels", cache_dir=tmp_path / "cache",
                              runs_dir=tmp_path / "runs")  # fmt: skip
    page = write_report(run, cache_dir=tmp_path / "cache")
    assert 1_000_000 < page.stat().st_size < 10_000_000
    text = page.read_text()
    assert re.search(r"A sample: [\d,]+ of 10,000 images, mistakes first", text)
    assert "A random sample; 9,100 images are left out" in text


def test_a_chart_stands_alone_and_escapes_its_words():
    drawn = chart([Series("<b>", [Point(1, 0.5, 0.4, 0.6, "<i>")])], title="a & b", x="seconds", y="accuracy",
                  x_log=True)  # fmt: skip
    assert drawn.startswith("<svg xmlns=") and "<b>" not in drawn and "&lt;i&gt;" in drawn and "a &amp; b" in drawn


@pytest.mark.parametrize(("ends", "log", "ticks"), [
    ((0, 1), False, [0, 0.2, 0.4, 0.6, 0.8, 1]), ((0.93, 0.97), False, [0.93, 0.94, 0.95, 0.96, 0.97]),
    ((1, 100), True, [1, 2, 5, 10, 20, 50, 100]), ((1, 1e5), True, [1, 10, 100, 1000, 10000, 100000]),
])  # fmt: skip
def test_ticks_are_round_numbers(ends, log, ticks):
    assert _ticks(*ends, log) == pytest.approx(ticks)
