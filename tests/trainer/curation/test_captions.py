"""Captions from an endpoint that is served here, over real connections, with every fault that such endpoints have."""

from __future__ import annotations

import pytest
from support.caption_endpoint import CHINESE, ENGLISH, GERMAN, Endpoint

from videotrain_api.resource.stages import CaptionEndpoint
from videotrain_api.resource.trainrun import Storage
from videotrain_trainer.curation.captions import GIVE_UP, Captioner, in_language
from videotrain_trainer.errors import ConfigError, StorageUnavailable
from videotrain_trainer.storage import ObjectStore


@pytest.fixture
def serve():
    servers = []

    def start(**faults: list[str]) -> Endpoint:
        servers.append(Endpoint({name.replace("_", "-"): kinds for name, kinds in faults.items()}))
        return servers[-1]

    yield start
    for endpoint in servers:
        endpoint.server.shutdown()
        endpoint.server.server_close()


@pytest.fixture
def captioner(tmp_path):
    store = ObjectStore.for_storage(Storage(uri="s3://from-the-environment"))

    def make(endpoint: Endpoint, key: str = "", **fields) -> Captioner:
        given = {"url": endpoint.url, "model": "vlm", "language": "en", "concurrency": 4, "timeout_seconds": 3}
        prefix = f"{tmp_path.as_uri()}/captions"
        spec = CaptionEndpoint.model_validate(given | fields)
        return Captioner(spec, store, prefix, key, lambda row: [row["uid"].encode()], pause=0.01)

    return make


def rows(*names: str) -> list[dict]:
    return [{"uid": name} for name in names]


def ask(captioner: Captioner, *names: str, stop=lambda: False) -> dict[str, str]:
    return captioner.captions(rows(*names), stop, lambda done: None)


TRANSPORT = {
    "busy": ["429", "429"],
    "failing": ["500", "503"],
    "torn": ["truncated"],
    "reset": ["reset"],
    "slow": ["slow"],
}


def test_what_passes_is_tried_again_and_every_caption_is_paid_once(serve, captioner):
    endpoint = serve(**TRANSPORT)
    first = captioner(endpoint, key="secret")
    names = [*TRANSPORT, "good"]
    found = ask(first, *names)
    assert found == {name: f"{ENGLISH} {name}" for name in names}
    assert endpoint.asked == {name: 1 + len(TRANSPORT.get(name, [])) for name in names}
    assert endpoint.keys == {"Bearer secret"}
    again = captioner(endpoint)
    assert ask(again, *names, "new") == found | {"new": f"{ENGLISH} new"}
    assert endpoint.paid == dict.fromkeys([*names, "new"], 1)
    assert (again.counts.stored, again.counts.made, again.counts.tries) == (len(names), 1, 1)


def test_what_does_not_pass_is_counted_by_reason(serve, captioner):
    endpoint = serve(
        german=["german"] * 9,
        chinese=["chinese", ""],
        dark=["400"],
        cut=["length"] * 9,
        mute=["empty"] * 9,
        down=["500"] * 9,
    )
    asked = captioner(
        endpoint, tries=3, price_per_million_prompt_tokens="2.00", price_per_million_completion_tokens="10"
    )
    found = ask(asked, "german", "chinese", "dark", "cut", "mute", "down", "good")
    assert set(found) == {"chinese", "good"}
    assert asked.counts.missing == {"language": 1, "status-400": 1, "cut-off": 1, "empty": 1, "status-500": 1}
    assert endpoint.asked == {"german": 2, "chinese": 2, "dark": 1, "cut": 2, "mute": 2, "down": 3, "good": 1}
    report = asked.report(7, len(found))
    assert (report.asked, report.captioned, report.tries) == (7, 2, 13)
    assert (report.prompt_tokens, report.completion_tokens) == (9000, 900)  # also those of useless answers are paid
    assert report.cost == "0.027"


def test_another_prompt_is_another_caption_and_another_address_is_not(serve, captioner):
    endpoint, other = serve(), serve()
    ask(captioner(endpoint), "a")
    ask(captioner(other, tries=2, concurrency=1), "a")
    assert not other.asked
    ask(captioner(other, prompt="What is it?"), "a")
    assert other.asked == {"a": 1}


def test_a_caption_that_came_before_the_stage_was_left_is_not_asked_for_again(serve, captioner):
    endpoint = serve()
    left = captioner(endpoint, concurrency=1)
    some = ask(left, *"abcdef", stop=lambda: left.counts.tries >= 3)
    assert len(some) == 3
    assert set(ask(captioner(endpoint), *"abcdef")) == set("abcdef")
    assert endpoint.paid == dict.fromkeys("abcdef", 1)


def test_a_refused_key_ends_the_stage_at_once(serve, captioner):
    endpoint = serve(a=["401"])
    with pytest.raises(ConfigError, match=r"curate\.captions: http://.* answers 401 to 'vlm'"):
        ask(captioner(endpoint), "a")
    assert endpoint.asked == {"a": 1}


def test_an_endpoint_that_gives_nothing_ends_the_stage(serve, captioner):
    names = [f"n{number}" for number in range(2 * GIVE_UP)]
    endpoint = serve(**{name: ["500"] * 9 for name in names})
    with pytest.raises(
        StorageUnavailable, match=r"gave no caption for \d+ clips one after the other \(\d+ status-500\)"
    ):
        ask(captioner(endpoint, tries=1), *names)
    assert len(endpoint.asked) < GIVE_UP + 8


@pytest.mark.parametrize(("text", "fits"), [(ENGLISH, True), (GERMAN, False), (CHINESE, False), ("A cat.", True)])
def test_the_language_of_a_caption_is_told(text, fits):
    assert in_language(text, "en") is fits
