"""URIs of objects: what a key may hold, the same for pydantic, for the CRD and for the client that asks for it."""

from __future__ import annotations

import re

import pytest
from pydantic import TypeAdapter, ValidationError

from videotrain_api.crd.definition import custom_resource_definition
from videotrain_api.resource.locations import Location, StorageUri

GOOD = [
    "s3://bucket",
    "s3://bucket/",
    "s3://bucket/a",
    "s3://bucket/a/b/",
    "s3://bucket/.hidden/..twice/.../a..b/c.",
    "s3://bucket/%2e%2e/a%20b/100%",
    "s3://bucket/a\\..\\b",
    "s3://bucket/ünïcode/日本",
]
BAD = [
    "s3://bucket/..",
    "s3://bucket/../x",
    "s3://bucket/a/../../b",
    "s3://bucket/.",
    "s3://bucket/a/./b",
    "s3://bucket/./",
    "s3://bucket/a//b",
    "s3://bucket//",
    "s3://bucket/a//",
    "s3://",
    "s3:///a",
]
OTHERS = [
    "",
    "s",
    "s3",
    "s3:",
    "s3:/",
    "/models/../t5",
    "file:///a/../b",
    "package://clips/data",
    "some/where",
    "s3x://b/..",
]


@pytest.mark.parametrize("kind", [StorageUri, Location])
@pytest.mark.parametrize("uri", GOOD)
def test_a_key_is_what_stands_there(kind, uri):
    assert TypeAdapter(kind).validate_python(uri) == uri


@pytest.mark.parametrize("kind", [StorageUri, Location])
@pytest.mark.parametrize("uri", BAD)
def test_parts_that_clients_fold_are_refused(kind, uri):
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(uri)


@pytest.mark.parametrize("uri", OTHERS)
def test_other_places_are_not_held_to_the_rules_of_keys(uri):
    assert TypeAdapter(Location).validate_python(uri) == uri


def patterns(schema: dict, path: str = "") -> dict[str, str]:
    """The pattern of every field of a schema that has one."""
    found = {path: schema["pattern"]} if "pattern" in schema else {}
    for name, below in schema.get("properties", {}).items():
        found |= patterns(below, f"{path}.{name}")
    return found | (patterns(schema["items"], f"{path}[]") if isinstance(schema.get("items"), dict) else {})


def test_every_place_of_a_manifest_is_held_to_them_by_the_crd():
    spec = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    held = {path for path, pattern in patterns(spec).items() if not any(re.search(pattern, uri) for uri in BAD)}
    dataset = {f".dataset.{name}" for name in ("videos", "captionTable", "clips", "latents")}
    weights = {f".{name}.weights" for name in ("model", "autoencoder", "textEncoder")}
    prompts = {f".stages[].sample.prompts[].{name}" for name in ("image", "lastImage", "video")}
    start = {f".stages[].{task}.initFrom.uri" for task in ("train", "autoencoder")}
    assert {".storage.uri", *dataset, *weights, *prompts, *start} <= held
