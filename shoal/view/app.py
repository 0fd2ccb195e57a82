"""The web application: one page, its files, and the answers that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from jinja2 import Environment, PackageLoader

from shoal.errors import DataError
from shoal.view.access import Guard, Visitors
from shoal.view.answers import answer
from shoal.view.lines import to_json
from shoal.view.runs import Runs

STATIC = files("shoal.view") / "static"
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def build_app(paths: Sequence[Path], visitors: Visitors | None = None) -> Guard:
    """The application over these run folders, folders of them, or files of samples.

    Raises:
        DataError: a path does not exist.
    """
    runs = Runs(paths)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    page = page_template().render(scripts=["uPlot.iife.min.js"], modules=["main.js"], styles=style_names(), export=None)
    known = {path.name for path in STATIC.iterdir() if Path(path.name).suffix in KINDS}

    @app.get("/")
    def shell() -> Response:
        return Response(page, media_type="text/html; charset=utf-8")

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in known:
            return Response("no such file", 404)
        return Response((STATIC / name).read_bytes(), media_type=f"{KINDS[Path(name).suffix]}; charset=utf-8")

    # Not async: reading files takes time, and Starlette gives each a thread.
    @app.get("/api/{name}")
    def api(name: str, request: Request) -> Response:
        try:
            return Response(to_json(answer(runs, name, request.query_params)), media_type="application/json")
        except DataError as error:
            return Response(to_json({"error": str(error)}), 404, media_type="application/json")

    return Guard(app, visitors or Visitors())


def page_template() -> Any:
    """The page's HTML."""
    return Environment(loader=PackageLoader("shoal.view"), autoescape=True).get_template("page.html.j2")


def style_names() -> list[str]:
    """The style sheets, in their order."""
    return ["uPlot.min.css", "look.css", "pages.css"]
