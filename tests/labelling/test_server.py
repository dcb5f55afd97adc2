"""The page: to whoever has its address and nobody else; every answer on disk before it is shown as kept."""

from __future__ import annotations

import csv
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from images import write_images
from PIL import Image, ImageOps

import pipeline
from pipeline.labelling import LabelSession
from pipeline.labelling.server import MOST_BYTES, LabelServer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    hostile = 'photos/<img src=x onerror="alert(1)">.png'
    write_images(tmp_path, *(f"photos/{number:02d}.png" for number in range(39)), hostile)
    return Path("photos")


@pytest.fixture
def server(photos):
    with LabelSession(pipeline.extract("photos", "pixels").path, "labels.csv", classes=["a", "<b>"]) as session:
        made = LabelServer(session, {"backbone": "pixels"})
        thread = threading.Thread(target=made.serve, daemon=True)
        thread.start()
        yield made
        made.stop()
        thread.join()


def ask(
    server: LabelServer, path: str, body: object = None, token: str | None = None, raw: bytes = b"", **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    content = raw or (b"" if body is None else json.dumps(body).encode())
    given = {"X-Token": server.token if token is None else token, "Content-Type": "application/json", **headers}
    connection.request("POST" if content else "GET", path, content or None, given)
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


def rows() -> list[dict[str, str]]:
    with Path("labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


ANSWER = {"rows": [3], "label": "a", "chosen": "asked", "shown": [1, 2]}


def test_an_answer_is_in_the_table_when_the_reply_comes(server):
    status, body, _ = ask(server, "/answer", ANSWER)
    assert status == 200 and json.loads(body)["kept"] == [3] and len(json.loads(body)["shown"]) == 2
    (row,) = rows()
    assert row["label"] == "a" and row["path"] == f"photos/{server.session.paths[3]}"
    assert json.loads(ask(server, "/state")[1])["counts"]["a"] == 1
    assert json.loads(ask(server, "/undo", {})[1]) == {"rows": [3]} and rows() == []


@pytest.mark.parametrize("path", ["/", "/state", "/next", "/page.js", "/photo/0", "/answer", "/undo", "/train"])
def test_nothing_is_given_without_the_token(server, path):
    body = {} if path in ("/answer", "/undo", "/train") else None
    for token in ("", "x" * 32, server.token[:-1]):
        assert ask(server, path, body, token)[0] == 403
    assert not Path("labels.csv").exists()


def test_other_hosts_and_origins_are_refused_even_with_the_token(server):
    assert ask(server, "/state", Host="evil.example")[0] == 403  # a name that somebody has pointed here
    assert ask(server, "/answer", ANSWER, Origin="https://evil.example")[0] == 403
    assert ask(server, "/answer", ANSWER, Origin="null")[0] == 403
    assert ask(server, "/answer", ANSWER, Origin=f"http://127.0.0.1:{server.port}")[0] == 200


@pytest.mark.parametrize("path", ["/photo/../labels.csv", "/../labels.csv", "/photo/9999", "/photo/-1", "/labels.csv",
                                  "/photo/%2e%2e%2flabels.csv", "/session.py", "/next?like=9999"])  # fmt: skip
def test_no_file_but_the_photos_is_given(server, path):
    Path("labels.csv").write_text("secret")
    status, body, _ = ask(server, path)
    assert status in (404, 405) and b"secret" not in body


@pytest.mark.parametrize(
    "body",
    [{}, [], {**ANSWER, "rows": []}, {**ANSWER, "rows": [10**9]}, {**ANSWER, "rows": ["../x"]}, {**ANSWER, "label": 7},
     {**ANSWER, "label": ""}, {**ANSWER, "label": "a\nb"}, {**ANSWER, "chosen": "random"}, {**ANSWER, "shown": [-1]}],
)  # fmt: skip
def test_what_is_no_answer_is_refused_and_nothing_is_written(server, body):
    assert ask(server, "/answer", body)[0] == 400
    assert not Path("labels.csv").exists()


def test_huge_and_broken_bodies_are_refused(server):
    assert ask(server, "/answer", raw=b"[" * (MOST_BYTES + 1))[0] == 413
    assert ask(server, "/answer", raw=b"{not json")[0] == 400


def test_the_page_loads_nothing_from_elsewhere_and_may_not(server):
    status, body, headers = ask(server, "/")
    assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
    everything = body + ask(server, "/page.js")[1] + ask(server, "/page.css")[1]
    assert b"https://" not in everything and b"innerHTML" not in everything


def test_a_full_disk_is_told_and_the_answer_is_not_taken_for_kept(server, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, body, _ = ask(server, "/answer", ANSWER)
    assert status == 507 and json.loads(body)["error"] == "Not kept: No space left on device."
    assert json.loads(ask(server, "/state")[1])["answered"] == 0


def held_up(server: LabelServer, monkeypatch: pytest.MonkeyPatch, what: str) -> tuple[threading.Event, threading.Event]:
    """Let a method of the session's class wait; return what tells that it began, and what lets it go on."""
    began, go_on, usual = threading.Event(), threading.Event(), getattr(LabelSession, what)

    def slow(session, *given):
        began.set()
        go_on.wait(30)
        return usual(session, *given)

    monkeypatch.setattr(LabelSession, what, slow)
    return began, go_on


def test_closing_waits_for_what_is_computed_and_lets_nothing_else_begin(server, monkeypatch):
    began, go_on = held_up(server, monkeypatch, "next")
    ended = []
    threading.Thread(target=lambda: (server.photos(1), ended.append("computed"))).start()
    assert began.wait(30)
    threading.Timer(0.2, go_on.set).start()
    server.close()  # by the thread that lives on: a later one may get the number of one that ended, and its lock
    late = threading.Thread(target=lambda: (server.photos(1), ended.append("late")), daemon=True)
    late.start()
    late.join(0.3)
    assert ended == ["computed"]


def test_no_answer_waits_for_the_panel_which_tells_of_the_moment_it_was_asked_for(server, monkeypatch):
    ask(server, "/answer", ANSWER)
    began, go_on = held_up(server, monkeypatch, "estimate")
    told = []
    panel = threading.Thread(target=lambda: told.append(server.state()))
    panel.start()
    assert began.wait(30)
    assert ask(server, "/answer", {**ANSWER, "rows": [4], "label": "new"})[0] == 200 and len(rows()) == 2
    assert not told
    go_on.set()
    panel.join()
    assert told[0]["counts"] == {"a": 1, "<b>": 0} and told[0]["answered"] == 1
    assert server.state()["counts"] == {"a": 1, "<b>": 0, "new": 1}


def test_train_makes_an_ordinary_run_scored_on_the_random_ones(server):
    for row in range(40):
        ask(server, "/answer", {**ANSWER, "rows": [row], "label": "a" if row % 2 else "b"})
    status, body, _ = ask(server, "/train", {})
    told = json.loads(body)
    assert status == 200 and told["split"] == "val" and told["n"] == sum(row["chosen"] == "random" for row in rows())
    assert pipeline.Run.open(told["name"]).metrics["splits"]["val"]["n"] == told["n"]
    assert [command.split()[1] for command in told["commands"]] == ["extract", "train-head"]


@pytest.fixture
def started(photos):
    """Return a function that starts `pipeline label` and returns its process and address; end what is left of them."""
    # a process that the shell put into the background ignores Ctrl-C, and so do those that it starts
    heard = ("import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
             "runpy.run_module('pipeline', run_name='__main__', alter_sys=True)")  # fmt: skip
    command = [sys.executable, "-c", heard, "label", "photos", "--backbone", "pixels", "--classes", "even,odd",
               "--labels", "labels.csv", "--json"]  # fmt: skip
    processes = list[subprocess.Popen]()

    def start() -> tuple[subprocess.Popen, str]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        processes.append(process)
        return process, json.loads(process.stdout.readline())["address"]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.skipif(not CHROMIUM, reason="takes a browser: chromium")
def test_in_a_browser_keys_alone_label_everything_through_a_reload_and_a_kill(photos, started):
    from playwright.sync_api import sync_playwright

    for photo in photos.glob("*[13579].png"):  # so that a head can tell them, and doubt a wrong answer
        with Image.open(photo) as image:
            ImageOps.invert(image.point(lambda value: value // 3)).save(photo)
    for photo in photos.glob("*[!13579].png"):
        with Image.open(photo) as image:
            image.point(lambda value: value // 3).save(photo)

    def ready(page, answered: int) -> None:
        page.wait_for_selector(f"#progress:text('{answered} of 40')")

    def label(page, first: int, last: int, wrong: bool = False) -> None:
        for answered in range(first, last + 1):
            name = page.eval_on_selector('#photos li[tabindex="0"]', "item => item.title")
            page.keyboard.press("2" if (name[-5] in "13579") != wrong else "1")
            if answered % 3 == 0:  # at times as fast as a person types
                ready(page, answered)
        ready(page, last)

    process, address = started()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, faults = browser.new_page(), []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.accept("straight")))
        page.goto(address)
        ready(page, 0)
        assert all(page.eval_on_selector_all("#photos img", "images => images.map(image => image.alt.length > 0)"))
        label(page, 1, 8)
        page.reload()
        ready(page, 8)
        label(page, 9, 12)
        process.send_signal(signal.SIGKILL)
        process.wait()
        page.keyboard.press("1")
        page.wait_for_selector("#message:text('has stopped')")
        assert len(rows()) == 12
        process, address = started()
        page.goto(address)
        ready(page, 12)
        label(page, 13, 39)
        page.keyboard.press("u")
        ready(page, 38)
        label(page, 39, 40, wrong=True)
        page.wait_for_selector("#empty")
        for doubted in (2, 1):  # of a photo that the page offers no more, only as a doubt
            page.wait_for_function("count => document.querySelectorAll('#doubts button').length === count", arg=doubted)
            page.click("#doubts button")
            label(page, 40, 40)
        page.wait_for_function("() => !document.querySelector('#doubts button')")
        assert faults == []  # no markup ran
        page.click("button[aria-label='rename even']")
        page.wait_for_selector("#counts td:text-is('straight')")
        assert page.inner_text("#counts") == "straight\t21\trename\nodd\t19\trename" and len(faults) == 1
        browser.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    told = rows()
    assert len(told) == len({row["path"] for row in told}) == 40
    assert all(row["label"] == ("odd" if row["path"][-5] in "13579" else "straight") for row in told)
