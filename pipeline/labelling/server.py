"""The page to label on: served to this machine alone, to whoever has the token in its address."""

from __future__ import annotations

import hmac
import secrets
import shlex
import threading
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

from ..core.errors import PipelineError
from ..reports.pictures import thumbnail
from .answers import ASKED, OTHER, SKIPPED
from .session import LabelSession, Question

FLASK = "The page takes Flask: pip install 'image-feature-pipeline[label]'."
HOST = "127.0.0.1"
MOST_BYTES = 1 << 20  # of a request
SMALL, LARGE = 220, 1600  # pixels of a photo's longer side
MOST_PHOTOS = 200  # on the page at once
FILES = {"page.js": "text/javascript", "page.css": "text/css"}


class LabelServer:
    """The page of a session.

    Parameters
    ----------
    session : LabelSession
    train : mapping
        What `pipeline.train_head` needs besides the table: ``backbone``, ``cache_dir``, ``runs_dir``.
    port : int
        0 for any that is free.

    Raises
    ------
    PipelineError
        If Flask is not installed, or the port is taken.
    """

    def __init__(self, session: LabelSession, train: Mapping[str, Any] | None = None, port: int = 0):
        try:
            from werkzeug.serving import WSGIRequestHandler, make_server
        except ImportError as error:
            raise PipelineError(FLASK) from error

        class Quiet(WSGIRequestHandler):
            def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
                """Say nothing: every line would show the token."""

        self.session, self.token = session, secrets.token_urlsafe(24)
        self._train, self._lock = dict(train or {}), threading.RLock()
        self._curve = session.curve()  # of what was answered before this page
        try:
            self._server = make_server(HOST, port, _application(self), threaded=True,
                                       request_handler=Quiet)
        except (OSError, SystemExit) as error:
            raise PipelineError(f"Port {port} of {HOST} cannot be used. Without --port any free one is.") from error
        self.port = int(self._server.server_port)

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self.port}/?token={self.token}"

    def serve(self) -> None:
        """Answer until `stop`, or an interrupt."""
        self._server.serve_forever()

    def stop(self) -> None:
        """Stop answering."""
        self._server.shutdown()

    def close(self) -> None:
        """Wait for what is being computed, and let nothing else begin.

        So the end of the process cuts no run off that is being trained.
        """
        self._lock.acquire()  # for good

    def may(self, host: str, origin: str | None, token: str) -> bool:
        """Tell whether a request comes from this very page: another page in the same browser knows no token."""
        own = {f"{HOST}:{self.port}", f"localhost:{self.port}"}
        return (host in own and (origin is None or origin.removeprefix("http://") in own)
                and hmac.compare_digest(token.encode(), self.token.encode()))  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Return what the side panel shows. Answers need not wait for it."""
        with self._lock:
            session = self.session.snapshot()
        found = session.estimate()
        doubts = [{**asdict(answer), "row": session.row_of(answer.path), "likelier": likelier, "probability": sure}
                  for answer, likelier, sure in session.doubts()]  # fmt: skip
        labelled = sum(session.counts.values())
        with self._lock:
            if found.accuracy is not None and (not self._curve or self._curve[-1][0] != labelled):
                self._curve.append((labelled, found.accuracy))
            curve = list(self._curve)
        return {"classes": session.classes, "counts": session.counts, "images": len(session.paths),
                "answered": session.answered, "estimate": asdict(found), "doubts": doubts, "curve": curve,
                "share": session.random_share, "strategy": session.strategy, "table": str(session.file.path)}

    def photos(self, count: int, like: int | None = None) -> list[dict[str, Any]]:
        """Return the next photos to ask for, or those that look like one."""
        with self._lock:
            count = max(1, min(count, MOST_PHOTOS))
            found = self.session.next(count) if like is None else [
                self.session.question(like), *self.session.alike(self.session.paths[like], count - 1)]
            return [_as_values(one) for one in found]

    def answer(self, rows: list[int], label: str, chosen: str, shown: list[int]) -> list[dict[str, Any]]:
        """Keep an answer to some photos; return what is thought now of others."""
        with self._lock:
            self.session.answer([self.session.paths[row] for row in rows], label, chosen)
            return [_as_values(self.session.question(row)) for row in shown]

    def add_class(self, name: str) -> None:
        """Make a class known that no photo has yet."""
        with self._lock:
            self.session.add_class(name)

    def undo(self) -> list[int]:
        """Take the last answer back; return its photos."""
        with self._lock:
            return [self.session.row_of(path) for path in self.session.undo()]

    def rename(self, old: str, new: str) -> None:
        """Rename a class, or merge it into another."""
        with self._lock:
            self.session.rename(old, new)

    def picture(self, row: int, large: bool) -> bytes:
        """Return a photo as JPEG."""
        image = thumbnail(self.session.root / self.session.paths[row], LARGE if large else SMALL)
        buffer = BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    def train(self) -> dict[str, Any]:
        """Train an ordinary run on the answers so far, scored on those drawn at random.

        Returns
        -------
        dict
            Its `name` and `accuracy`, and the `commands` that would have made it.
        """
        from ..stage_one import extract
        from ..stage_two import train_head

        with self._lock:
            table = str(self.session.file.path)
            where = {key: self._train[key] for key in ("cache_dir",) if key in self._train}
            backbone = self._train.get("backbone", "efficientnet_lite0")
            extract(table, backbone, **where)
            run = train_head("logistic", table, backbone, **where,
                             **({"runs_dir": self._train["runs_dir"]} if "runs_dir" in self._train else {}))
        split = next((name for name in ("val", "train") if name in run.metrics["splits"]), "train")
        named = shlex.join(["--data", table, *self._train.get("flags", [])])
        return {"name": run.name, "path": str(run.path), "split": split, **{
            key: run.metrics["splits"][split][key] for key in ("accuracy", "accuracy_ci95", "n")},
            "commands": [f"pipeline extract {named}", f"pipeline train-head {named}"]}


def _as_values(question: Question) -> dict[str, Any]:
    return {**asdict(question), "name": Path(question.path).name}


def _application(server: LabelServer) -> Any:
    from flask import Flask, Response, abort, jsonify, request

    app = Flask("pipeline.labelling", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MOST_BYTES
    policy = ("default-src 'none'; img-src 'self' data:; script-src 'self'; style-src 'self'; connect-src 'self'; "
              "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")  # fmt: skip

    @app.before_request
    def check() -> None:
        token = request.headers.get("X-Token") or request.args.get("token", "")
        if not server.may(request.host, request.headers.get("Origin"), token):
            abort(403)

    @app.after_request
    def guard(response: Response) -> Response:
        response.headers |= {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff",
                             "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin"}
        return response

    @app.errorhandler(PipelineError)
    def explain(error: PipelineError) -> tuple[Response, int]:
        return jsonify(error=str(error)), 400

    @app.errorhandler(OSError)
    def not_kept(error: OSError) -> tuple[Response, int]:
        return jsonify(error=f"Not kept: {error.strerror or error}."), 507

    @app.get("/")
    def page() -> Response:
        text = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        return Response(text.replace("TOKEN", server.token), mimetype="text/html")

    @app.get("/<name>")
    def resource(name: str) -> Response:
        if name not in FILES:
            abort(404)
        return Response(files(__package__).joinpath(name).read_text(encoding="utf-8"), mimetype=FILES[name])

    @app.get("/photo/<int:row>")
    def photo(row: int) -> Response:
        if row >= len(server.session.paths):
            abort(404)
        found = Response(server.picture(row, "large" in request.args), mimetype="image/jpeg")
        found.headers["Cache-Control"] = "private, max-age=3600"
        return found

    @app.get("/state")
    def state() -> Response:
        return jsonify(server.state())

    @app.get("/next")
    def following() -> Response:
        like = request.args.get("like", type=int)
        if like is not None and not 0 <= like < len(server.session.paths):
            abort(404)
        return jsonify(server.photos(request.args.get("count", 24, type=int), like))

    @app.post("/answer")
    def answer() -> Response:
        told = _checked(request.get_json(), {"rows": list, "label": str, "chosen": str, "shown": list})
        rows, shown = told["rows"], told["shown"]
        if not rows or not all(map(is_row, [*rows, *shown])) or told["chosen"] not in (ASKED, SKIPPED, OTHER):
            abort(400)
        shown = server.answer(rows, told["label"], told["chosen"], shown)
        return jsonify(kept=rows, shown=shown, answered=server.session.answered)

    @app.post("/classes")
    def classes() -> Response:
        server.add_class(_checked(request.get_json(), {"name": str})["name"])
        return jsonify(kept=True)

    @app.post("/undo")
    def undo() -> Response:
        return jsonify(rows=server.undo())

    @app.post("/rename")
    def rename() -> Response:
        told = _checked(request.get_json(), {"old": str, "new": str})
        server.rename(told["old"], told["new"])
        return jsonify(kept=True)

    @app.post("/train")
    def train() -> Response:
        return jsonify(server.train())

    def is_row(row: Any) -> bool:
        return isinstance(row, int) and 0 <= row < len(server.session.paths)

    def _checked(told: Any, wanted: Mapping[str, type]) -> dict[str, Any]:
        if not isinstance(told, dict) or any(not isinstance(told.get(name), kind) for name, kind in wanted.items()):
            abort(400)
        return told

    return app
