"""Manifests over the whole schema: sound ones, and ones broken in every way that a file can be.

A manifest starts from one of a few sound runs, gets further fields drawn from the CRD's schema and is then broken up to
four times: unknown and missing fields, wrong types, numbers beyond every bound, nulls, empty and doubled things, names,
huge texts, deep pod templates.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from videotrain_api.config import aspect
from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS
from videotrain_api.crd.definition import root_schema
from videotrain_api.vocabulary import API_VERSION, KIND

Json = dict[str, Any]
Place = tuple[str | int, ...]
SCHEMA: Final = root_schema()
_LARGEST: Final = 2**53

_BUCKET: Final = {"resolution": "64px", "frames": 8, "batchSize": 2}
_OPTIMIZER: Final = {"learningRate": [{"value": 0.001}]}
_STAGES: Final[dict[str, Json]] = {
    "curate": {},
    "autoencoder": {
        "steps": 10,
        "bucket": _BUCKET,
        "optimizer": _OPTIMIZER,
        "parallel": {"microBatchesPerStep": 4},
    },
    "encode": {},
    "train": {"steps": 100, "buckets": [_BUCKET], "optimizer": _OPTIMIZER, "parallel": {"microBatchesPerStep": 4}},
    "sample": {"resolution": "64px", "frames": 8, "prompts": [{"text": "a cat"}]},
}
_SOURCES: Final = {"curate": "videos", "autoencoder": "clips", "encode": "clips", "train": "latents"}
_PRESETS: Final = (*TRANSFORMERS, *AUTOENCODERS, "dc-ae")
_CHAINS: Final = (
    ("curate", "autoencoder", "encode", "train", "sample"),
    ("curate",),
    ("curate", "encode", "train"),
    ("autoencoder",),
    ("train",),
    ("train", "train"),
    ("train", "sample"),
    ("sample",),
    ("encode", "train", "train", "sample"),
)

NUMBERS: Final = (
    0,
    -0,
    -0.0,
    1,
    -1,
    0.5,
    5.0,
    1e3,
    1e308,
    -1e308,
    5e-324,
    1e19,
    2**31,
    2**53,
    2**53 + 1,
    2**62,
    2**63 - 1,
    2**63,
    -(2**63),
    2**64,
    10**40,
)
"""Numbers at which one of two number systems ends."""
TEXTS: Final = (
    "",
    " ",
    "5",
    "true",
    "null",
    "2.00",
    "-1",
    "1e3",
    "0",
    "ünïcode",
    "日本語",
    "🎬" * 21,
    "a\n",
    "\u00a0",
    "\u2028",
    "\x00",
    "\x7f",
    "e\u0301",
    "\ufeff",
    "-a",
    "A",
    "a" * 40,
    "a" * 41,
    "9" * 20,
    "s3://a",
    "s3://abc/\u00a0x",
    "s3://abc/\n",
    "s3://abc/x\x0by",
    "s3://bucket/" + "x" * 3000,
    "${HOME}",
    "{{ .Values }}",
    "2026-01-01T00:00:00Z",
)
"""Texts that someone's parser stumbles over."""
_WILD: Final = (None, True, False, [], {}, [None], {"": None}, [[]], {"a": {"b": [1, {"c": None}]}}, *NUMBERS, *TEXTS)
_KEYS: Final = ("", "min", "Min", "gpus_per_node", "stage s", "unknown", "$ref", "日本", "x" * 300, "a.b", "name")
_LABELS: Final = (
    {},
    {"team": "vision"},
    {"videotrain.dev/team": "a.b_c"},
    {"a": ""},
    {"-a": "x"},
    {"a": "not good"},
    {"a/b/c": "x"},
    {"a": "x" * 64},
    {"UPPER/a": "x"},
    {"k" * 64: "x"},
    {"a": 5},
    {"a": None},
    ["a"],
)


def as_kubectl_sends(value: Any) -> Any:
    """Data as a client in Go writes it: a float that is a whole number below 1e21 has no point."""
    if isinstance(value, dict):
        return {key: as_kubectl_sends(part) for key, part in value.items()}
    if isinstance(value, list):
        return [as_kubectl_sends(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e21 else value


@st.composite
def manifests(draw: st.DrawFn, most_faults: int = 4) -> Any:
    """A manifest as a YAML or JSON parser would hand it over; about a third of them are sound."""
    body = draw(sound_manifests())
    faults = draw(st.integers(0, most_faults))
    for fault in draw(st.lists(st.sampled_from(FAULTS), min_size=faults, max_size=faults)):
        fault(draw, body)
    return body


def generated(number: int, start: int) -> list[Any]:
    """So many manifests, the same ones for the same `start`."""
    found: list[Any] = []

    @seed(start)
    @settings(
        max_examples=number,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(manifests())
    def collect(manifest: Any) -> None:
        found.append(manifest)

    collect()
    return found


@st.composite
def sound_manifests(draw: st.DrawFn) -> Any:
    """A run that is accepted, with more fields drawn from the schema; their combination may break a rule."""
    chain = draw(st.sampled_from(_CHAINS))
    body = training_run(draw(_names()), chain)
    if draw(st.booleans()):
        body["spec"]["nodes"] = draw(_nodes())
    if draw(st.integers(0, 3)) == 0:
        body["metadata"]["labels"] = {"videotrain.dev/team": "vision"}
        body["metadata"]["annotations"] = {"note": draw(st.text(max_size=20))}
    for _ in range(draw(st.integers(0, 5))):
        add_field(draw, body)
    return body


def training_run(name: str = "run", chain: tuple[str, ...] = ("train",)) -> Json:
    """A sound manifest with one stage of each task in `chain`; one that reads what it does not make is given it."""
    head = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}}
    return head | {"spec": _spec(chain)}


def _spec(chain: tuple[str, ...]) -> Json:
    stages = [_stage(task, number) for number, task in enumerate(chain)]
    dataset = {_SOURCES[chain[0]]: "s3://data/set"} if chain[0] in _SOURCES else {}
    given = {"weights": "s3://data/weights"}
    made = {
        "autoencoder": given if "autoencoder" not in chain else {},
        "model": given if chain[0] == "sample" else {},
    }
    return {
        "model": {"preset": "mmdit-tiny-dcae", **made["model"]},
        "autoencoder": {"preset": "dc-ae-tiny", **made["autoencoder"]},
        "dataset": dataset,
        "storage": {"uri": "s3://bucket/prefix"},
        "pool": {"gpusPerNode": 2, "pricePerGpuHour": "2.00"},
        "stages": stages,
    }


def _stage(task: str, number: int) -> Json:
    return {"name": f"{task}-{number}", "task": task, task: copy.deepcopy(_STAGES[task])}


def _names() -> st.SearchStrategy[str]:
    return st.sampled_from(("run", "a", "run-1", "0", "a" * 40, "x--y"))


def _nodes() -> st.SearchStrategy[Json]:
    sizes = ({"min": 1, "max": 2}, {"min": 1}, {"max": 2}, {"min": 1, "max": 2, "allowed": [1, 2]}, {})
    return st.sampled_from(sizes).map(copy.deepcopy)


def add_field(draw: st.DrawFn, body: Json) -> None:
    """Set one field that the schema knows, at any depth, to a value that the schema allows there."""
    place, schema = draw(st.sampled_from(list(_objects(body, SCHEMA, ()))))
    names = sorted(set(schema["properties"]) - {"status", "metadata", "apiVersion", "kind"})
    if place and names:
        name = draw(st.sampled_from(names))
        _at(body, place)[name] = draw(_field(name, schema["properties"][name], 0))


def _field(name: str, schema: Json, depth: int) -> st.SearchStrategy[Any]:
    """Values of a field; drawn from the presets where a random word would hide all that comes after it."""
    return st.sampled_from(_PRESETS) if name == "preset" else values(schema, depth)


def values(schema: Json, depth: int = 0) -> st.SearchStrategy[Any]:
    """Values that a node of a structural schema allows."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    return _KINDS[schema["type"]](schema, depth)


def _integers(schema: Json, _depth: int) -> st.SearchStrategy[Any]:
    low, high = schema.get("minimum", -5), schema.get("maximum", _LARGEST)
    near = [low, low + 1, min(high, low + 3), min(high, 8), min(high, 100), high]
    return st.sampled_from([n for n in near if low <= n <= high])


def _numbers(schema: Json, _depth: int) -> st.SearchStrategy[Any]:
    low, high = schema.get("minimum", -5.0), schema.get("maximum", 1e6)
    outside = {low} if schema.get("exclusiveMinimum") else set()
    outside |= {high} if schema.get("exclusiveMaximum") else set()
    near = (low, low + 1e-9, (low + high) / 2, min(high, 1), min(high, 0.25), high)
    return st.sampled_from([n for n in near if low <= n <= high and n not in outside])


def _strings(schema: Json, _depth: int) -> st.SearchStrategy[Any]:
    if "pattern" not in schema:
        sizes = {"min_size": schema.get("minLength", 0), "max_size": min(schema.get("maxLength", 30), 30)}
        plain = st.text(st.characters(exclude_categories=("Cs",)), **sizes)
        return st.one_of(st.sampled_from(("16:9", "1:1", "s3://data/x", "train-0", "mmdit-tiny", "word")), plain)
    known = {
        "px": st.sampled_from([*aspect.RESOLUTION_NAMES, "77px"]),
        "s3": st.just("s3://bucket/other"),
        "[A-Z]": st.sampled_from(("USD", "EUR")),
        "[0-9]{1,12}": st.sampled_from(("0", "2.00", "999999999999.999999", "0.000001", "1000000")),
    }
    found = [strategy for part, strategy in known.items() if part in schema["pattern"]]
    return found[0] if found else st.sampled_from(("train-0", "a", "b-2", "a" * 40))


def _arrays(schema: Json, depth: int) -> st.SearchStrategy[Any]:
    least, most = schema.get("minItems", 0), min(schema.get("maxItems", 3), 3)
    return st.lists(values(schema["items"], depth + 1), min_size=min(least, 3), max_size=max(least, most))


def _mappings(schema: Json, depth: int) -> st.SearchStrategy[Any]:
    if "properties" not in schema:
        below = schema.get("additionalProperties")
        inner = values(below, depth + 1) if below else st.sampled_from(({"a": 1}, {}, "x", None, 1.5))
        keys = st.sampled_from(("spec", "metadata") if below is None else ("a", "kubernetes.io/arch", "ü"))
        return st.dictionaries(keys, inner, max_size=2)
    properties, required = schema["properties"], schema.get("required", [])
    optional = [name for name in properties if name not in required]

    def filled(chosen: list[str]) -> st.SearchStrategy[Any]:
        names = [*required, *chosen]
        return st.fixed_dictionaries({name: _field(name, properties[name], depth + 1) for name in names})

    most = 3 if depth < 2 else 1
    return st.lists(st.sampled_from(optional), unique=True, max_size=most).flatmap(filled) if optional else filled([])


_KINDS: Final[dict[str, Callable[[Json, int], st.SearchStrategy[Any]]]] = {
    "integer": _integers,
    "number": _numbers,
    "string": _strings,
    "boolean": lambda _schema, _depth: st.booleans(),
    "array": _arrays,
    "object": _mappings,
}


def _objects(value: Any, schema: Json, place: Place) -> Iterator[tuple[Place, Json]]:
    """Objects with known fields in a manifest, with their schema."""
    if isinstance(value, dict) and "properties" in schema:
        yield place, schema
        for name, part in value.items():
            below = schema["properties"].get(name)
            if below and name not in ("metadata", "status"):
                yield from _objects(part, below, (*place, name))
    if isinstance(value, list):
        for number, part in enumerate(value):
            yield from _objects(part, schema.get("items", {}), (*place, number))


def _at(body: Any, place: Place) -> Any:
    for part in place:
        body = body[part]
    return body


def places(body: Any, place: Place = ()) -> Iterator[Place]:
    """Every place of a manifest below its root, apart from the parts of metadata."""
    items = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for key, part in items:
        yield (*place, key)
        if (*place, key) != ("metadata",):
            yield from places(part, (*place, key))


def _somewhere(draw: st.DrawFn, body: Json) -> tuple[Any, str | int]:
    """A container in the manifest and a key of it; mostly below spec."""
    found = list(places(body))
    below = [place for place in found if len(place) > 1]
    place = draw(st.sampled_from(below if below and draw(st.integers(0, 9)) else found))
    return _at(body, place[:-1]), place[-1]


def set_wild(draw: st.DrawFn, body: Json) -> None:
    """A value of another type, or a number or a text at the end of what types can hold."""
    if body:
        container, key = _somewhere(draw, body)
        container[key] = copy.deepcopy(draw(st.sampled_from(_WILD)))


def set_number(draw: st.DrawFn, body: Json) -> None:
    """A number goes out of range."""
    found = [place for place in places(body) if isinstance(_at(body, place), int | float)]
    if found:
        place = draw(st.sampled_from(found))
        _at(body, place[:-1])[place[-1]] = draw(st.sampled_from(NUMBERS))


def remove(draw: st.DrawFn, body: Json) -> None:
    """A field or an item goes."""
    if body:
        container, key = _somewhere(draw, body)
        del container[key]


def add_unknown(draw: st.DrawFn, body: Json) -> None:
    """A field that nobody knows, or one in the wrong place."""
    found = [(), *(place for place in places(body) if isinstance(_at(body, place), dict))]
    target = _at(body, draw(st.sampled_from(found)))
    target[draw(st.sampled_from(_KEYS))] = draw(st.sampled_from((None, 1, "x", {}, [])))


def double(draw: st.DrawFn, body: Json) -> None:
    """An item of a list appears twice, or so often that the list is too long."""
    found = [place for place in places(body) if isinstance(_at(body, place), list) and _at(body, place)]
    if found:
        items = _at(body, draw(st.sampled_from(found)))
        items += [copy.deepcopy(items[0]) for _ in range(draw(st.sampled_from((1, 1, 2, 33, 65))))]


def swap(draw: st.DrawFn, body: Json) -> None:
    """The order of a list is turned round."""
    found = [place for place in places(body) if isinstance(_at(body, place), list)]
    if found:
        _at(body, draw(st.sampled_from(found))).reverse()


def rename(draw: st.DrawFn, body: Json) -> None:
    """The run's name, its labels or its annotations are what Kubernetes does not take."""
    head = body.get("metadata")
    if isinstance(head, dict):
        field, options = draw(
            st.sampled_from((("name", TEXTS + NUMBERS), ("labels", _LABELS), ("annotations", _LABELS), ("x", TEXTS)))
        )
        head[field] = copy.deepcopy(draw(st.sampled_from(options)))


def deepen(draw: st.DrawFn, body: Json) -> None:
    """A pod template nested far deeper, or far larger, than any pod."""
    spec = body.get("spec")
    if isinstance(spec, dict):
        inner: Any = {"a": draw(st.sampled_from((None, 1e308, 2**63, "x" * 50_000)))}
        for _ in range(draw(st.sampled_from((1, 10, 60, 150)))):
            inner = {"spec": inner} if draw(st.booleans()) else {"spec": [inner]}
        spec["podTemplate"] = draw(st.sampled_from((inner, {"spec": inner}, {"metadata": inner, "spec": {}})))


FAULTS: Final = (
    set_wild,
    set_wild,
    set_wild,
    set_number,
    remove,
    add_unknown,
    add_field,
    add_field,
    double,
    swap,
    rename,
    deepen,
)
"""Ways in which a manifest is broken, or only changed."""


def review_body(manifest: Any = None) -> bytes:
    """What the API server asks a webhook about a new run; about a small one by default."""
    return json.dumps(
        {"request": {"uid": "u", "operation": "CREATE", "object": manifest or training_run("a")}}
    ).encode()
