"""Boards are what Grafana's own types say, and its own panels draw them.

VIDEOTRAIN_WRITE_DOCS=1 keeps the pictures in docs/pictures.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from support.grafana_page import SCHEMA, built, draw, serving
from support.monitored_run import RUN, Scene

from videotrain_api.generate.dashboards import BOARDS, document
from videotrain_api.generate.panels import Board

pytestmark = pytest.mark.timeout(1800)
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
OF_PROMETHEUS = {"expr", "titleFormat"}
"""Fields of annotations that belong to the data source, so that Grafana's types of a dashboard do not have them."""
WRITE = os.environ.get("VIDEOTRAIN_WRITE_DOCS") == "1"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    boards = {board.uid: document(board) for board in BOARDS}
    with serving(built(), boards, tmp_path_factory.mktemp("page") / "page") as address:
        yield address


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_a_board_fits_grafana_s_own_types(board: Board) -> None:
    schema = json.loads((built() / SCHEMA).read_text())
    body = document(board)
    for annotation in body["annotations"]["list"]:
        for name in OF_PROMETHEUS:
            annotation.pop(name)
    jsonschema.validate(body, schema)
    body["refresh"] = 30
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body, schema)


def check_drawn(scene: Scene, address: str, board: Board, theme: str, run: dict[str, str], folder: Path) -> None:
    """Every panel of which the Prometheus has data is drawn, and none fails."""
    seconds = int(scene.end - scene.start)
    values = {"__rate_interval": "30s", "__range_s": f"{seconds}", "__range": f"{seconds}s", "cluster": ".*"}
    values |= {"stage": ".*", "pod": ".*", "team": ".*"} | run
    asked = {"start": scene.start, "end": scene.end, "theme": theme, "values": json.dumps(values)}
    picture = folder / f"{board.uid}-{theme}.png"
    drawing = draw(address, document(board), picture, prometheus=scene.prometheus.url, **asked)
    assert drawing.errors == []
    titles = [panel.title for _, panels in board.rows for panel in panels]
    assert set(drawing.states) == set(titles)
    assert set(drawing.states.values()) <= {"drawn", "empty"}
    assert sum(state == "drawn" for state in drawing.states.values()) > 0.6 * len(titles), drawing.states
    assert drawing.canvases > 0
    if WRITE:
        shutil.copy(picture, PICTURES / f"board-{board.uid.removeprefix('videotrain-')}-{theme}.png")


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("board", [b for b in BOARDS if b.uid != "videotrain-operator"], ids=lambda board: board.uid)
def test_grafana_s_panels_draw_a_board(scene: Scene, address: str, board: Board, theme: str, tmp_path: Path) -> None:
    run = {"namespace": "default", "run": RUN} if board.one_run else {"namespace": ".*", "run": ".*"}
    check_drawn(scene, address, board, theme, run, tmp_path)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_grafana_s_panels_draw_the_operator_s_board(
    operator_scene: Scene, address: str, theme: str, tmp_path: Path
) -> None:
    (board,) = (board for board in BOARDS if board.uid == "videotrain-operator")
    check_drawn(operator_scene, address, board, theme, {"namespace": ".*", "run": ".*"}, tmp_path)
