"""Copies of kept bills in an object store, where they outlive the cluster.

A config map with a bill is what counts; its object is made to be the same, again and again until it is. So nothing is
lost while the store is away, whoever ends meanwhile, and nobody waits for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Final, Protocol, cast

from videotrain_api import metrics as catalogue
from videotrain_api.billing.document import BillError, RunBill, bill_text, read_bill, replaces
from videotrain_api.render.names import bill_name
from videotrain_api.resource.bill_storage import BillStorage
from videotrain_api.schema import Json
from videotrain_api.storage.layout import bill_object
from videotrain_api.vocabulary import BILL_KEY, FIELD_MANAGER, LABEL_BILL, LABEL_BILL_STORED
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.telemetry import Sample

PAUSES: Final = (1.0, 5.0, 30.0, 120.0)
"""Seconds after failures in a row; the last holds on."""
LONGEST_SECONDS: Final = 60.0
"""For the requests of one bill."""
CONNECTION: Final = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=20)}
RETRIES: Final = {"max_retries": 1, "retry_timeout": timedelta(seconds=20)}
"""This module tries again itself, and says so."""
PAGE: Final = 50
"""Config maps that are read at a time when a leader begins; each has a whole bill."""
_log = logging.getLogger(__name__)


class Writer(Protocol):
    """What is needed of the operator's client."""

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        """See KubeClient.get."""

    async def list_page(self, kind: str, namespace: str = "", **query: str) -> Json:
        """See KubeClient.list_page."""

    async def patch(self, kind: str, namespace: str, name: str, patch: Any, *, manager: str = "") -> Json:
        """See KubeClient.patch."""


class BillCopies:
    """Brings each kept bill to its place in the object store while this process leads."""

    def __init__(self, writer: Writer, namespace: str, place: BillStorage) -> None:
        """Begin with nothing to do; no server is asked.

        Args:
            writer: reads the config maps with bills, and marks those that are done with.
            namespace: where they are.
            place: where copies go.
        """
        self._writer, self._namespace, self._place = writer, namespace, place
        self._store = _connect(place)
        self._mark = hashlib.sha256(json.dumps(place.to_wire(), sort_keys=True).encode()).hexdigest()[:16]
        self._waiting: dict[str, None] = {}
        """Names of config maps, those that failed last."""
        self._at_work = False
        self._news = asyncio.Event()
        self._failures = 0

    def note(self, bill: RunBill) -> None:
        """A bill was kept anew."""
        self._add(bill_name(bill.uid))

    async def run(self) -> None:
        """Copy what was not, then what is noted, until cancelled. Trouble is counted, logged and tried again."""
        finding = asyncio.create_task(self._find())
        try:
            failed = 0
            while True:
                await self._news.wait()
                if await self._round():
                    failed = 0
                    continue
                pause = PAUSES[min(failed, len(PAUSES) - 1)]
                failed += 1
                _log.warning("%d bills wait for %s, next try in %g s", len(self._waiting), self._place.uri, pause)
                await asyncio.sleep(pause)
        finally:
            self._at_work = False
            finding.cancel()
            self._waiting.clear()  # the next leader finds them
            self._news.clear()

    def samples(self) -> Iterable[Sample]:
        """Of one scrape."""
        yield catalogue.BILLS_WAITING, (), float(len(self._waiting) + self._at_work)
        yield catalogue.BILL_COPY_FAILURES, (), self._failures

    def _add(self, name: str) -> None:
        self._waiting[name] = None
        self._news.set()

    async def _find(self) -> None:
        """All that earlier leaders left, and all that were kept before there was this place."""
        query = {"labelSelector": f"{LABEL_BILL},{LABEL_BILL_STORED}!={self._mark}", "limit": str(PAGE)}
        failed = 0
        while True:
            try:
                page = await self._writer.list_page("ConfigMap", self._namespace, **query)
            except Exception as error:
                pause = PAUSES[min(failed, len(PAUSES) - 1)]
                failed += 1
                _log.warning("bills to be copied were not read, next try in %g s: %s", pause, error)
                query.pop("continue", None)  # it may have expired
                await asyncio.sleep(pause)
                continue
            for body in page["items"]:
                self._add(body["metadata"]["name"])
            if not (token := page["metadata"].get("continue")):
                return
            query["continue"] = token

    async def _round(self) -> bool:
        """One bill; False if it could not be brought."""
        name = next(iter(self._waiting))
        del self._waiting[name]
        self._at_work = True
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                await self._copy(name)
        except BillError as error:  # edited by hand; the config map stays as it is
            self._failures += 1
            _log.warning("config map %s is not copied: %s", name, error)
        except Exception as error:
            self._failures += 1
            self._waiting.setdefault(name)
            _log.warning("%s was not copied: %s", name, self._explained(error))
            return False
        finally:
            self._at_work = False
        if not self._waiting:
            self._news.clear()
        return True

    async def _copy(self, name: str) -> None:
        try:
            body = await self._writer.get("ConfigMap", self._namespace, name)
        except NotFound:
            return  # somebody deleted it
        bill = _bill_in(body)
        await self._put(bill)
        if bill.closed:
            mark = {"metadata": {"labels": {LABEL_BILL_STORED: self._mark}}}
            try:
                await self._writer.patch("ConfigMap", self._namespace, name, mark, manager=FIELD_MANAGER)
            except NotFound:
                return

    async def _put(self, bill: RunBill) -> None:
        """Write it unless one that goes as far is there; whoever led before may still be writing."""
        import obstore

        key = _key(self._place, bill.uid)
        mode: Any = "create"
        try:
            found = await obstore.get_async(self._store, key)
            there = bytes(await found.bytes_async())
        except FileNotFoundError:
            pass
        else:
            if not replaces(bill, there):
                return
            mode = {"e_tag": found.meta["e_tag"]}
        attributes = {"Content-Type": "application/json"}
        await obstore.put_async(self._store, key, bill_text(bill).encode(), mode=mode, attributes=attributes)

    def _explained(self, error: Exception) -> str:
        """What went wrong, and where to look."""
        if isinstance(error, TimeoutError):
            return f"{self._place.uri} did not answer within {LONGEST_SECONDS:g} s"
        text = str(error).partition("\n\nDebug source")[0].replace("\n", " ").strip()
        where = self._place.endpoint_url or f"AWS S3 ({self._place.region})"
        hint = "check bucket, endpoint and the operator's credentials (bills of the chart)"
        return f"{self._place.uri} at {where}: {type(error).__name__}: {text}; {hint}"


def _connect(place: BillStorage) -> Any:
    """A client with the process's credentials: keys of its environment, a web identity, or those of its pod or node.

    Raises:
        ImportError: obstore is not installed.
    """
    from obstore.store import S3Store

    options: dict[str, Any] = {"endpoint": place.endpoint_url} if place.endpoint_url else {}
    plain = bool(place.endpoint_url and place.endpoint_url.startswith("http://"))
    return S3Store(
        _parts(place)[0],
        region=place.region,
        virtual_hosted_style_request=False,
        client_options=cast(Any, CONNECTION | {"allow_http": plain}),
        retry_config=cast(Any, RETRIES),
        **options,
    )


def _parts(place: BillStorage) -> Sequence[str]:
    bucket, _, prefix = place.uri.removeprefix("s3://").partition("/")
    return bucket, prefix.rstrip("/")


def _key(place: BillStorage, uid: str) -> str:
    return bill_object(_parts(place)[1], uid).lstrip("/")


def _bill_in(body: Json) -> RunBill:
    try:
        return read_bill(json.loads(body["data"][BILL_KEY]))
    except (KeyError, TypeError, ValueError) as error:
        raise BillError(str(error)) from error
