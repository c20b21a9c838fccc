"""Captions from a model behind an OpenAI-compatible endpoint, such as vLLM's.

A caption that was paid for is stored at once, under the hash of the clip and of all that was asked, so that no restart
and no other bound pays for it again. What goes wrong on the way is tried again; what stays wrong is counted, by reason.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import urllib3
import xxhash

from videotrain_api.money import format_micros, parse_micros, round_half_up
from videotrain_api.resource.stages import CaptionEndpoint
from videotrain_api.storage.artifacts import CaptionReport
from videotrain_trainer.checksums import read_checked, sealed_json, unsealed_json
from videotrain_trainer.curation.source import stem_words
from videotrain_trainer.errors import ConfigError, ObjectMissing, StorageUnavailable
from videotrain_trainer.storage import ObjectStore

Row = dict[str, Any]
LONGEST_WAIT = 60.0
"""Seconds between two tries, also where the endpoint asks for more."""
LARGEST_ANSWER = 1 << 20
"""Bytes; a longer answer is none of a caption."""
CONTENT_TRIES = 2
"""How often an answer is asked for that comes whole and is of no use: each is paid for."""
CONTENT_REASONS = frozenset({"cut-off", "empty", "language"})
UNSURE = 0.05
"""Probability of the wanted language from which on a text may be in it; short ones are hard to tell."""
GIVE_UP = 50
"""Clips in a row without a caption after which the endpoint counts as out of order."""
REFUSALS = frozenset({400, 413, 415, 422})
"""Status codes that speak of this clip; all other 4xx but 408, 409, 425 and 429 speak of the endpoint or the key."""
AGAIN = frozenset({408, 409, 425, 429})


@dataclass
class Captioned:
    """What was asked and paid."""

    made: int = 0
    """Captions that were paid for now."""
    stored: int = 0
    """Captions that an earlier life had paid for."""
    tries: int = 0
    """Requests."""
    prompt_tokens: int = 0
    """Of all answers, also of those that were of no use."""
    completion_tokens: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    """Clips without a caption, by reason."""


def has_no_text(row: Row) -> bool:
    """Whether a clip's caption is only the words of its video's name."""
    return bool(row["caption"] == stem_words(PurePosixPath(row["source"]).stem))


class NoCaption(Exception):
    """This clip gets none; the reason is one word."""


class _Again(Exception):
    """Worth another try."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


class Captioner:
    """Asks for captions of clips.

    Args:
        endpoint: where, and what.
        store: keeps answers.
        prefix: URI of the folder for them.
        key: of the API; empty for none.
        frames: JPEG files of a clip's row.
        pause: seconds before the second try; each further one waits twice as long.
    """

    def __init__(
        self,
        endpoint: CaptionEndpoint,
        store: ObjectStore,
        prefix: str,
        key: str,
        frames: Callable[[Row], Sequence[bytes]],
        pause: float = 1.0,
    ) -> None:
        self._endpoint = endpoint
        self._store = store
        self._prefix = prefix
        self._frames = frames
        self._pause = pause
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._pool = urllib3.PoolManager(maxsize=endpoint.concurrency, retries=False)
        self._lock = threading.Lock()
        self.counts = Captioned()

    def captions(self, rows: Sequence[Row], stop: Callable[[], bool], told: Callable[[int], None]) -> dict[str, str]:
        """Captions by uid, as far as there are any.

        Args:
            rows: kept clips.
            stop: whether to leave; asked before each clip.
            told: how many clips are done.

        Raises:
            ConfigError: the endpoint refuses the key, the model or the path.
            StorageUnavailable: it gave no caption for GIVE_UP clips one after the other.
        """
        found: dict[str, str] = {}
        done, row_of_missing, queue = 0, 0, iter(rows)
        with ThreadPoolExecutor(self._endpoint.concurrency) as threads:
            running: set[Future[tuple[str, str | None]]] = set()
            while True:
                while len(running) < self._endpoint.concurrency and not stop() and (row := next(queue, None)):
                    running.add(threads.submit(self._caption, row))
                if not running:
                    return found
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    uid, caption = future.result()
                    row_of_missing = 0 if caption else row_of_missing + 1
                    if caption:
                        found[uid] = caption
                    done += 1
                if row_of_missing >= GIVE_UP:
                    reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.missing.items())
                    raise StorageUnavailable(
                        f"curate.captions.url: {self._endpoint.url} gave no caption for {row_of_missing} clips one "
                        f"after the other ({reasons}); captions that came are kept"
                    )
                told(done)

    def report(self, asked: int, captioned: int) -> CaptionReport:
        """What was asked, had and paid."""
        counts, endpoint = self.counts, self._endpoint
        prompt = counts.prompt_tokens * parse_micros(endpoint.price_per_million_prompt_tokens)
        completion = counts.completion_tokens * parse_micros(endpoint.price_per_million_completion_tokens)
        return CaptionReport(
            asked=asked,
            captioned=captioned,
            missing=dict(sorted(counts.missing.items())),
            tries=counts.tries,
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
            cost=format_micros(round_half_up(Fraction(prompt + completion, 1_000_000))),
        )

    def _caption(self, row: Row) -> tuple[str, str | None]:
        uri = f"{self._prefix}/{self._name(row)}.json"
        try:
            answer = read_checked(self._store, uri, unsealed_json)
        except ObjectMissing:
            pass
        else:
            self._count(stored=1)
            return row["uid"], str(answer["caption"])
        try:
            caption = self._asked(row)
        except NoCaption as missing:
            with self._lock:
                self.counts.missing[str(missing)] += 1
            return row["uid"], None
        self._store.put(uri, sealed_json({"uid": row["uid"], "model": self._endpoint.model, "caption": caption}))
        self._count(made=1)
        return row["uid"], caption

    def _name(self, row: Row) -> str:
        """Hash of the clip and of all that decides its caption."""
        deciding = {"model", "prompt", "frames", "frame_side", "max_tokens"}
        asked = self._endpoint.model_dump(mode="json", include=deciding)
        return str(xxhash.xxh3_128_hexdigest(json.dumps([row["uid"], asked], sort_keys=True).encode()))

    def _asked(self, row: Row) -> str:
        body, useless = self._request(row), 0
        for number in range(self._endpoint.tries):
            try:
                return self._answer(body)
            except _Again as error:
                useless += error.reason in CONTENT_REASONS
                if number + 1 == self._endpoint.tries or useless == CONTENT_TRIES:
                    raise NoCaption(error.reason) from error
                # Threads that failed together do not come back together.
                backoff = self._pause * 2**number * random.uniform(0.5, 1.0)
                time.sleep(min(LONGEST_WAIT, max(error.after, backoff)))
        raise AssertionError("unreachable")

    def _request(self, row: Row) -> bytes:
        pictures = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"}}
            for data in self._frames(row)
        ]
        content = [*pictures, {"type": "text", "text": self._endpoint.prompt}]
        asked = {"model": self._endpoint.model, "max_tokens": self._endpoint.max_tokens, "temperature": 0}
        return json.dumps(asked | {"messages": [{"role": "user", "content": content}]}).encode()

    def _answer(self, body: bytes) -> str:
        self._count(tries=1)
        status, headers, data = self._post(body)
        if status in AGAIN or status >= 500:
            raise _Again(f"status-{status}", _seconds(headers.get("retry-after")))
        if status in REFUSALS:
            raise NoCaption(f"status-{status}")
        if status != 200:
            told = data[:200].decode("utf-8", "replace")
            raise ConfigError(
                f"curate.captions: {self._endpoint.url} answers {status} to {self._endpoint.model!r}: {told}"
            )
        try:
            answer = json.loads(data)
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            text = " ".join(str(choice["message"]["content"] or "").split())
            self._count(
                prompt_tokens=int(usage.get("prompt_tokens") or 0),
                completion_tokens=int(usage.get("completion_tokens") or 0),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Again("no-json") from error
        if choice.get("finish_reason") == "length":
            raise _Again("cut-off")
        if not text:
            raise _Again("empty")
        if self._endpoint.language and not in_language(text, self._endpoint.language):
            raise _Again("language")
        return text

    def _post(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body; an answer counts only if it is whole and comes in time."""
        until = time.monotonic() + self._endpoint.timeout_seconds
        timeout = urllib3.Timeout(
            connect=min(10.0, self._endpoint.timeout_seconds), read=self._endpoint.timeout_seconds
        )
        url = f"{self._endpoint.url.rstrip('/')}/chat/completions"
        try:
            answer = self._pool.request(
                "POST", url, body=body, headers=self._headers, timeout=timeout, preload_content=False, redirect=False
            )
            data, problem = b"", ""
            while not problem and (part := answer.read1(1 << 16)):
                data += part
                problem = "too-long" if len(data) > LARGEST_ANSWER else "timeout" if time.monotonic() > until else ""
            if problem:
                answer.close()  # what is left of it must not be taken for the next answer
            answer.release_conn()
        except urllib3.exceptions.TimeoutError as error:
            raise _Again("timeout") from error
        except urllib3.exceptions.HTTPError as error:
            raise _Again("connection") from error
        if problem:
            raise _Again(problem)
        return answer.status, answer.headers, data

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, value in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + value)


def check(endpoint: CaptionEndpoint) -> None:
    """Raises ConfigError if the language of captions cannot be told here."""
    if endpoint.language is not None and importlib.util.find_spec("py3langid") is None:
        raise ConfigError(
            "curate.captions.language: py3langid is not installed here; install videotrain-trainer[curate], or leave "
            "the language out"
        )


def in_language(text: str, language: str) -> bool:
    """Whether a text may be in a language (ISO 639-1): no other one is far more probable."""
    found, _ = _identifier().classify(text)
    if found == language:
        return True
    ranked = dict(_identifier().rank(text))
    return bool(ranked.get(language, 0.0) > UNSURE)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _seconds(text: str | None) -> float:
    """Of a Retry-After header; one with a date asks for the usual pause."""
    return float(text) if text is not None and text.isdigit() else 0.0
