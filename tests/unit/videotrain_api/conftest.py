"""The admission of an API server, played offline: schema, unknown fields, defaults and CEL rules of the CRD."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cel_expr_python import cel

from videotrain_api.crd.definition import root_schema

HERE = Path(__file__).parent


class Admission:
    """Refuses what the CRD refuses."""

    def __init__(self) -> None:
        self.schema = root_schema()
        self.environment = cel.NewEnv(variables={"self": cel.Type.DYN, "oldSelf": cel.Type.DYN})
        self.compiled: dict[str, Any] = {}

    def refusals(self, manifest: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
        """Messages, each starting with the field path; empty if the manifest is taken."""
        found = [f"{path}: unknown field" for path in unknown_fields(manifest, self.schema, "")]
        validator = jsonschema.Draft4Validator(self.schema)
        found += [
            f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(manifest)
        ]
        if found:
            return found
        new = typed(manifest, self.schema)
        return [*self.rules(new, typed(old, self.schema) if old else None, self.schema, "")]

    def rules(self, value: Any, old: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
        """Every rule of a node and of what lies below it."""
        for rule in schema.get("x-kubernetes-validations", []):
            transition = "oldSelf" in rule["rule"]
            if (not transition or old is not None) and not self.holds(rule["rule"], value, old):
                yield f"{path}{rule.get('fieldPath', '')}: {rule['message']}".lstrip(".")
        if isinstance(value, dict):
            for name, part in value.items():
                below = schema.get("properties", {}).get(name)
                if below:
                    yield from self.rules(part, old.get(name) if old else None, below, f"{path}.{name}".lstrip("."))
        if isinstance(value, list):
            for number, part in enumerate(value):
                yield from self.rules(part, same_item(part, old, schema), schema["items"], f"{path}[{number}]")

    def holds(self, rule: str, value: Any, old: Any) -> bool:
        expression = self.compiled.setdefault(rule, self.environment.compile(rule))
        result = expression.eval(data={"self": value, "oldSelf": old})
        assert result.type() == cel.Type.BOOL, f"{rule}: {result.value()}"
        return bool(result.value())


def same_item(part: Any, old: Any, schema: dict[str, Any]) -> Any:
    """The old item that an item of a map list replaces; items of other lists have none."""
    keys = schema.get("x-kubernetes-list-map-keys")
    if not keys or not old:
        return None
    return next((item for item in old if all(item.get(key) == part.get(key) for key in keys)), None)


def unknown_fields(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    if isinstance(value, dict) and "properties" in schema:
        for name, part in value.items():
            if name in schema["properties"]:
                yield from unknown_fields(part, schema["properties"][name], f"{path}.{name}".lstrip("."))
            elif path != "metadata":
                yield f"{path}.{name}"
    if isinstance(value, list):
        for number, part in enumerate(value):
            yield from unknown_fields(part, schema.get("items", {}), f"{path}[{number}]")


def typed(value: Any, schema: dict[str, Any]) -> Any:
    """With defaults filled in, and numbers as the API server hands them to CEL: `number` is a double."""
    if schema.get("type") == "number":
        return float(value)
    if isinstance(value, list):
        return [typed(part, schema.get("items", {})) for part in value]
    if isinstance(value, dict) and "properties" in schema:
        properties = schema["properties"]
        filled = {name: copy.deepcopy(p["default"]) for name, p in properties.items() if "default" in p} | value
        return {name: typed(part, properties.get(name, {})) for name, part in filled.items()}
    return value


@pytest.fixture(scope="session")
def admission() -> Admission:
    return Admission()


@pytest.fixture
def manifest() -> dict[str, Any]:
    """A valid manifest with one stage of every task; tests change it."""
    return yaml.safe_load((HERE / "good.yaml").read_text())


def bad_manifests() -> list[Path]:
    return sorted((HERE / "bad").glob("*.yaml"))


def header(path: Path) -> dict[str, str]:
    """The comment on top of a bad manifest: what must be refused, the value shown, words of what is allowed."""
    return dict(re.findall(r"^# ([a-z ]+): (.*)$", path.read_text(), re.MULTILINE))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "bad" in metafunc.fixturenames:
        metafunc.parametrize("bad", bad_manifests(), ids=lambda path: path.stem)


@pytest.fixture
def expectation(bad: Path) -> dict[str, str]:
    return header(bad)
