"""The addresses of the page: its files, images by their number in the run, groups, decisions."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from antibackdoor.errors import AntiBackdoorError, ConfigError
from antibackdoor.review.board import GROUPINGS, Board, Query
from antibackdoor.review.grouping import Seen, seen_in
from antibackdoor.review.guard import Guard
from antibackdoor.review.likeness import difference_of, fractions, highlight, ordinary_of
from antibackdoor.review.pixels import png

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray
    from starlette.requests import Request

__all__ = ["build_app"]

_SCRIPTS = ("address", "board", "deciding", "dialogs", "keyboard", "review", "state", "tiles")
_ASSETS = {
    "": ("page.html", "text/html"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    "review.css": ("review.css", "text/css"),
    **{f"{name}.js": (f"{name}.js", "text/javascript") for name in _SCRIPTS},
}
_THUMB = 128  # pixels a side at most
_LONGEST_PAGE, _GROUPS_A_PAGE, _PREVIEWED, _ORDINARY_SHOWN = 500, 12, 24, 8
_AVERAGED = 400  # images behind the picture of a group
_LARGEST_BODY = 1_000_000  # bytes; a page of rows is far below
_KEPT = {"cache-control": "private, max-age=86400, immutable"}  # the token makes every session's addresses new


def build_app(board: Board, token: str, hosts: Collection[str]) -> Guard:
    """Return the application.

    Args:
        board: What is under review.
        token: First part of every address.
        hosts: See :class:`Guard`.
    """
    pages = _Pages(board)
    routes = [Route("/" + path, _asset(name, kind), methods=["GET"]) for path, (name, kind) in _ASSETS.items()]
    routes += [
        Route("/api/run", pages.run, methods=["GET"]),
        Route("/api/groups", pages.groups, methods=["GET"]),
        Route("/api/images", pages.images, methods=["GET"]),
        Route("/api/decide", pages.decide, methods=["POST"]),
        Route("/api/undo", pages.undo, methods=["POST"]),
        Route("/thumb/{row:int}", pages.thumb, methods=["GET"]),
        Route("/image/{row:int}", pages.image, methods=["GET"]),
        Route("/differs/{row:int}", pages.differs, methods=["GET"]),
        Route("/group/{by}/{group:int}/{what}", pages.group, methods=["GET"]),
    ]
    app = Starlette(
        routes=[Mount(f"/{token}", routes=routes)],
        exception_handlers={HTTPException: _say_http, AntiBackdoorError: _say_ours},
    )
    return Guard(app, token, hosts)


def _asset(name: str, kind: str) -> Any:
    content = files("antibackdoor.review").joinpath("static", name).read_bytes()

    async def serve(request: Request) -> Response:
        return Response(content, media_type=kind)

    return serve


async def _say_http(request: Request, error: Exception) -> Response:
    code, words = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "a fault of ours")
    return JSONResponse({"error": words}, code)


async def _say_ours(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400 if isinstance(error, ConfigError) else 409)


class _Pages:
    """The answers."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._group_picture = lru_cache(maxsize=512)(self._draw_group)
        self._class = lru_cache(maxsize=64)(self._ordinary_of_class)

    def run(self, request: Request) -> Response:
        """What is under review."""
        board = self._board
        record = board.stored.record
        _, _, height, width = board.pictures.images.shape
        name = record.data.get("name")
        return JSONResponse(
            {
                "name": str(name or "Training run"),
                "verdict": record.verdict or "not judged",
                "evidence": list(record.evidence),
                "classes": list(board.stored.classes),
                "images": board.count,
                "flagged": int(board.stored.flagged.sum()),
                "near": int(board.near.sum()),
                "gone": int((board.pictures.places < 0).sum()),
                "changed": int(board.pictures.changed.sum()),
                "width": width,
                "height": height,
                "file": board.journal.path.name,
                **self._state(),
            }
        )

    def groups(self, request: Request) -> Response:
        """A page of groups, each with its first images and some ordinary ones of its class."""
        board, query = self._board, _query(request)
        board.look()
        found = board.groups(query)
        start = _number(request, "offset", 0)
        shown = []
        for key, rows in found[start : start + _GROUPS_A_PAGE]:
            labels = np.unique(board.stored.labels[rows])
            one = int(labels[0]) if len(labels) == 1 else None
            pictured = one is not None and key >= 0 and query.by != "none" and bool(board.under_review[rows].any())
            seen = None if one is None else seen_in(board.stored, rows)
            ordinary = [] if one is None else board.grouping.ordinary(one, _ORDINARY_SHOWN).tolist()
            shown.append(
                {
                    "key": key,
                    "verdict": None if one is None else board.verdict(one),
                    "finding": "" if one is None else board.finding(query, rows),
                    "label": None if one is None else board.stored.classes[one],
                    "pictured": pictured,
                    "tally": board.tally(rows),
                    "ordinary": ordinary,
                    "seen": None if seen is None else self._seen(seen),
                    "items": [board.item(row) for row in rows[:_PREVIEWED].tolist()],
                }
            )
        images = sum(len(rows) for _, rows in found)
        return JSONResponse({"total": len(found), "images": images, "page": _GROUPS_A_PAGE, "groups": shown})

    def _seen(self, seen: Seen) -> dict[str, Any]:
        rows = self._board.grouping.ordinary(seen.label, _ORDINARY_SHOWN).tolist()
        return {"label": self._board.stored.classes[seen.label], "count": seen.count, "of": seen.of, "rows": rows}

    def images(self, request: Request) -> Response:
        """A page of images."""
        self._board.look()
        rows = self._board.rows(_query(request))
        start = _number(request, "offset", 0)
        count = min(_number(request, "limit", 100), _LONGEST_PAGE)
        items = [self._board.item(row) for row in rows[start : start + count].tolist()]
        return JSONResponse({"total": len(rows), "tally": self._board.tally(rows), "items": items})

    async def decide(self, request: Request) -> Response:
        """Decide about some images by their rows, or about all that a query asks for."""
        body = await _json(request)
        return await run_in_threadpool(self._decide, body)

    def _decide(self, body: dict[str, Any]) -> Response:
        board = self._board
        if "rows" in body:
            rows = _checked_rows(body["rows"], board.count)
        else:
            names = {"by": str, "group": int, "show": str, "text": str}
            asked = body.get("query")
            if not isinstance(asked, dict) or any(type(asked.get(name)) is not kind for name, kind in names.items()):
                raise HTTPException(400, "decide: give rows, or a query with by, group, show and text")
            rows = board.rows(Query(**{name: asked[name] for name in names}))
        decision, label = body.get("decision"), body.get("label", "")
        if not isinstance(decision, str) or not isinstance(label, str):
            raise HTTPException(400, "decide: decision and label are words")
        if len(rows):
            board.decide(rows, decision, label)
        return JSONResponse({"changed": len(rows), **self._state()})

    def undo(self, request: Request) -> Response:
        """Take the last step back."""
        rows = self._board.undo()
        items = [self._board.item(row) for row in rows[:_LONGEST_PAGE]]
        return JSONResponse({"changed": len(rows), "items": items, **self._state()})

    def thumb(self, request: Request) -> Response:
        """A small picture of an image."""
        return Response(png(self._pixels(request), _THUMB), media_type="image/png", headers=_KEPT)

    def image(self, request: Request) -> Response:
        """An image as the run saw it."""
        return Response(png(self._pixels(request)), media_type="image/png", headers=_KEPT)

    def differs(self, request: Request) -> Response:
        """An image with what is unlike its class highlighted."""
        pixels = fractions(self._pixels(request)[None])
        label = int(self._board.stored.labels[request.path_params["row"]])
        shown = highlight(pixels[0], difference_of(pixels, self._class(label)))
        return Response(png(shown), media_type="image/png", headers=_KEPT)

    def group(self, request: Request) -> Response:
        """The mean of a group ("mean"), that of ordinary images ("ordinary"), and what sets it apart ("differs").

        The group stands for its suspects, where it has some.
        """
        by, what = request.path_params["by"], request.path_params["what"]
        if by not in GROUPINGS or what not in ("mean", "ordinary", "differs"):
            raise HTTPException(404, "no such picture")
        content = self._group_picture(by, request.path_params["group"], what)
        return Response(content, media_type="image/png", headers=_KEPT)

    def _draw_group(self, by: Any, group: int, what: str) -> bytes:
        board = self._board
        rows = board.group_rows(by, group)
        rows = rows[board.pictures.places[rows] >= 0]
        if board.stored.flagged[rows].any():  # what suspects have in common is not thinned by others
            rows = rows[board.stored.flagged[rows]]
        if not len(rows):
            raise HTTPException(404, "no such group")
        ordinary = self._class(int(board.stored.labels[rows[0]]))
        rows = rows[np.linspace(0, len(rows) - 1, min(_AVERAGED, len(rows))).astype(np.int64)]
        images = fractions(board.pictures.pixels(rows))
        mean = ordinary.mean if what == "ordinary" else images.mean(0)
        if what == "differs":
            return png(highlight(mean, difference_of(images, ordinary)))
        return png((255 * mean).round().astype(np.uint8))

    def _ordinary_of_class(self, label: int) -> Any:
        board = self._board
        return ordinary_of(fractions(board.pictures.pixels(board.grouping.ordinary(label, _AVERAGED))))

    def _pixels(self, request: Request) -> NDArray[np.uint8]:
        row = request.path_params["row"]
        if row >= self._board.count or self._board.pictures.places[row] < 0:
            raise HTTPException(404, "no such image")
        found: NDArray[np.uint8] = self._board.pictures.images[self._board.pictures.places[row]]
        return found

    def _state(self) -> dict[str, Any]:
        return {"tally": self._board.tally(), "undoable": self._board.journal.undoable}


def _query(request: Request) -> Query:
    asked = request.query_params
    named = {name: asked[name] for name in ("by", "show", "text", "order") if name in asked}
    group = _number(request, "group", None, least=-1) if "group" in asked else None
    return Query(group=group, **named)  # type: ignore[arg-type]


def _number(request: Request, name: str, default: Any, least: int = 0) -> Any:
    try:
        value = int(request.query_params.get(name, default))
    except ValueError:
        value = least - 1
    if not least <= value < 2**62:
        raise HTTPException(400, f"{name}: expected a whole number from {least}")
    return value


def _checked_rows(given: object, count: int) -> NDArray[np.int64]:
    if not isinstance(given, list) or not all(type(row) is int and 0 <= row < count for row in given):
        raise HTTPException(400, f"rows: expected a list of numbers from 0 to {count - 1}")
    return np.array(sorted(set(given)), np.int64)


async def _json(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise HTTPException(415, "expected application/json")
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > _LARGEST_BODY:
            raise HTTPException(413, "that is too much at once")
    try:
        values = json.loads(bytes(content))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise HTTPException(400, "expected a JSON object")
    return values
