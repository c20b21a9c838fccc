"""An OpenAI-compatible endpoint over real connections, with every fault that such endpoints have."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENGLISH = "A red car drives slowly along a wet street at night, while neon signs are reflected by the puddles."
GERMAN = "Ein rotes Auto faehrt nachts langsam durch eine nasse Strasse, waehrend sich Leuchtreklamen spiegeln."
CHINESE = "一辆红色的汽车在夜晚缓慢地驶过潮湿的街道，霓虹灯映在水坑里。"


class Endpoint:
    """Answers by what the only picture of a request says: the clip's name, whose faults come first."""

    def __init__(self, faults: dict[str, list[str]]) -> None:
        self.faults = {name: list(kinds) for name, kinds in faults.items()}
        self.asked: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.answer(self, json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def log_message(self, *args) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def answer(self, request: BaseHTTPRequestHandler, body: dict) -> None:
        content = body["messages"][0]["content"]
        name = base64.b64decode(content[0]["image_url"]["url"].split(",")[1]).decode("ascii", "ignore")
        name = name if name.isprintable() else "picture"
        assert request.path == "/v1/chat/completions"
        assert content[-1]["type"] == "text"
        with self.lock:
            self.asked[name] += 1
            self.keys.add(request.headers["authorization"])
            faults = self.faults.get(name, [])
            fault = faults.pop(0) if faults else ""
        status, text, reason = 200, f"{ENGLISH} {name}", "stop"
        if fault.isdigit():
            status = int(fault)
        elif fault in ("german", "chinese", "empty"):
            text = {"german": GERMAN, "chinese": CHINESE, "empty": ""}[fault]
        elif fault == "length":
            reason = "length"
        answer = {"choices": [{"message": {"content": text}, "finish_reason": reason}]}
        data = json.dumps(answer | {"usage": {"prompt_tokens": 1000, "completion_tokens": 100}}).encode()
        if fault == "truncated":
            data = data[: len(data) // 2]
        with self.lock:
            self.paid[name] += status == 200 and not fault
        request.send_response(status)
        request.send_header("content-length", str(len(data) + (50 if fault == "reset" else 0)))
        if status == 429:
            request.send_header("retry-after", "0")
        request.end_headers()
        if fault == "slow":
            for byte in data:
                try:
                    request.wfile.write(bytes([byte]))
                    request.wfile.flush()
                except OSError:
                    return
                time.sleep(0.05)
            return
        request.wfile.write(data)
        if fault == "reset":
            request.close_connection = True
