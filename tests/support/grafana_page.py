"""A page that draws boards with Grafana's own panels, built once on a machine from npm packages, in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from videotrain.controlplane.cache import cache_folder
from videotrain.locks import awaited

SOURCES: Final = Path(__file__).parents[1] / "monitoring" / "grafana"
FILES: Final = ("package.json", "index.html", "vite.config.js", "main.jsx")
SCHEMA: Final = "dashboard.schema.json"
"""JSON Schema of a dashboard, made of Grafana's own types."""
TYPES: Final = "node_modules/@grafana/schema/dist/types/raw/dashboard/x/types.gen.d.ts"
COLUMN, ROW, GAP = 64, 34, 8
"""Of a board in pixels, as main.jsx draws it."""
_QUIET: Final = (
    "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
)
_FLAGS: Final = f"--headless --no-sandbox --disable-gpu --hide-scrollbars {_QUIET} --virtual-time-budget=20000"


def built() -> Path:
    """The built page beside SCHEMA, in the user's cache; the first use fetches 450 MB and takes a minute."""
    files = {name: (SOURCES / name).read_bytes() for name in FILES}
    folder = cache_folder("grafana", sha256(b"\0".join(files.values())).hexdigest()[:16])
    page = folder / "page"
    with awaited(folder):
        if not page.is_dir():
            with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as build:
                for name, content in files.items():
                    Path(build, name).write_bytes(content)
                quiet = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts")
                _run(build, "npm", "install", "--legacy-peer-deps", *quiet)
                _run(build, "npx", "vite", "build")
                Path(build, "tsconfig.json").write_text('{"compilerOptions": {"skipLibCheck": true}}')
                generator = ["ts-json-schema-generator", "--path", TYPES, "--type", "Dashboard", "--no-type-check"]
                _run(build, "npx", *generator, "--tsconfig", "tsconfig.json", "-o", f"dist/{SCHEMA}")
                Path(build, "dist").replace(page)
    return page


def _run(folder: str, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


class Drawing:
    """A board that a browser has drawn."""

    def __init__(self, dom: str, picture: Path) -> None:
        self.picture = picture
        """PNG."""
        panels = re.findall(r'data-panel="([^"]*)" data-state="(\w+)" title="([^"]*)"', dom)
        self.states = {title: state for title, state, _ in panels}
        """`drawn`, `empty`, `failed` or `loading` by the panel's title."""
        self.errors = [error for _, _, error in panels if error]
        self.canvases = dom.count("<canvas")
        """Of lines."""


@contextmanager
def serving(page: Path, boards: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """The page with boards by name beside it; yields its address."""
    shutil.copytree(page, folder)
    for name, board in boards.items():
        (folder / f"{name}.json").write_text(json.dumps(board))

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def draw(address: str, board: Mapping[str, Any], picture: Path, **asked: str | float) -> Drawing:
    """Let Chromium draw a board.

    Args:
        address: of the page.
        board: Grafana's JSON, which is served under its uid.
        picture: where the screenshot goes.
        asked: parameters of the page, see main.jsx.
    """
    program = shutil.which("chromium")
    assert program, "chromium is not installed: apt-get install chromium, or leave tests/monitoring out"
    url = f"{address}/index.html?{urlencode({'board': board['uid'] + '.json', **asked})}"
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    size = f"--window-size={24 * COLUMN + GAP},{bottom * ROW + GAP}"
    with tempfile.TemporaryDirectory() as profile:
        command = [program, *_FLAGS.split(), f"--user-data-dir={profile}", size]
        subprocess.run([*command, f"--screenshot={picture}", url], capture_output=True, timeout=300, check=True)
        dom = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=300, check=True)
    return Drawing(dom.stdout, picture)
