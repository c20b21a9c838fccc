"""The admission of an API server, played offline on the CRD: decoding, pruning, defaults, schema and CEL rules."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
from cel_expr_python import cel

from videotrain_api.crd.definition import root_schema

Json = dict[str, Any]
_INT64 = range(-(2**63), 2**63)


class OfflineAdmission:
    """Serves or refuses manifests as an API server with strict field validation does."""

    def __init__(self) -> None:
        self.schema = root_schema()
        self.environment = cel.NewEnv(variables={"self": cel.Type.DYN, "oldSelf": cel.Type.DYN})
        self.compiled: dict[str, Any] = {}
        self.validator = jsonschema.validators.extend(
            jsonschema.Draft4Validator,
            {"pattern": _pattern, "x-kubernetes-list-map-keys": _map_keys, "maxProperties": _most_properties},
            type_checker=jsonschema.Draft4Validator.TYPE_CHECKER.redefine("integer", lambda _, v: _is_integer(v)),
        )(self.schema)

    def serve(self, manifest: Json) -> tuple[Json, list[str]]:
        """The object as it would be stored and shown to webhooks, and why it is refused, if it is."""
        refusals = [f"{path}: unknown field" for path in _unknown(manifest, self.schema, "")]
        served = _served(manifest, self.schema)
        refusals += [f"{error.json_path}: {error.message}" for error in self.validator.iter_errors(served)]
        return served, refusals or list(self._rules(served, self.schema, ""))

    def _rules(self, value: Any, schema: Json, path: str) -> Iterator[str]:
        for rule in schema.get("x-kubernetes-validations", []):
            if "oldSelf" not in rule["rule"] and not self._holds(rule["rule"], _for_cel(value, schema)):
                yield f"{path}: {rule['message']}"
        if isinstance(value, dict):
            for name, part in value.items():
                below = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
                if below:
                    yield from self._rules(part, below, f"{path}.{name}")
        if isinstance(value, list):
            for number, part in enumerate(value):
                yield from self._rules(part, schema["items"], f"{path}[{number}]")

    def _holds(self, rule: str, value: Any) -> bool:
        """A rule that cannot be evaluated, such as one that overflows, refuses as well."""
        if rule not in self.compiled:
            self.compiled[rule] = self.environment.compile(rule)
        result = self.compiled[rule].eval(data={"self": value})
        return bool(result.type() == cel.Type.BOOL and result.value())


def _served(value: Any, schema: Json) -> Any:
    """Known nulls dropped, defaults filled in."""
    if isinstance(value, list):
        return [_served(part, schema.get("items", {})) for part in value]
    if not isinstance(value, dict):
        return int(value) if isinstance(value, float) and _is_integer(value) else value
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    kept = {k: v for k, v in value.items() if v is not None or not (properties.get(k) or others)}
    filled = {name: copy.deepcopy(p["default"]) for name, p in properties.items() if "default" in p} | kept
    return {name: _served(part, properties.get(name) or others or {}) for name, part in filled.items()}


def _unknown(value: Any, schema: Json, path: str) -> Iterator[str]:
    if isinstance(value, dict) and "properties" in schema:
        for name, part in value.items():
            if name in schema["properties"]:
                yield from _unknown(part, schema["properties"][name], f"{path}.{name}".lstrip("."))
            elif path != "metadata":
                yield f"{path}.{name}".lstrip(".")
    if isinstance(value, list):
        for number, part in enumerate(value):
            yield from _unknown(part, schema.get("items", {}), f"{path}[{number}]")


def _for_cel(value: Any, schema: Json) -> Any:
    """Numbers as the API server hands them to CEL: `number` is a double."""
    if schema.get("type") == "number":
        return float(value)
    if isinstance(value, list):
        return [_for_cel(part, schema.get("items", {})) for part in value]
    if isinstance(value, dict) and ("properties" in schema or "additionalProperties" in schema):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        return {name: _for_cel(part, properties.get(name, others)) for name, part in value.items()}
    return {} if isinstance(value, dict) else value  # CEL does not see what is kept without being known


def _is_integer(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, float):
        return value.is_integer() and int(value) in _INT64
    return isinstance(value, int) and value in _INT64


def _pattern(_: Any, pattern: str, value: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
    r"""Go's expressions: `$` is the very end and \s knows ASCII only."""
    if isinstance(value, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), value, re.ASCII):
        yield jsonschema.ValidationError(f"{value!r} does not match {pattern}")


def _most_properties(_: Any, most: int, value: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
    if isinstance(value, dict) and len(value) > most:
        yield jsonschema.ValidationError(f"must have at most {most} properties")


def _map_keys(_: Any, keys: list[str], value: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
    items = value if isinstance(value, list) else []
    found = [tuple(str(item.get(key)) for key in keys) for item in items if isinstance(item, dict)]
    if len(set(found)) != len(found):
        yield jsonschema.ValidationError(f"duplicate {keys}")
