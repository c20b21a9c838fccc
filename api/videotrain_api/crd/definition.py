"""The CustomResourceDefinitions, made from the pydantic models.

A structural schema has no references, no null and only a few of JSON Schema's words; this module turns pydantic's JSON
schema into one, with the field documentation and the CEL rules of `admission`.
"""

from __future__ import annotations

import copy
import re
from typing import Final

from videotrain_api import vocabulary
from videotrain_api.crd.cel_rules import BUDGET_RULES, RULES
from videotrain_api.resource.stage_names import DNS_LABEL
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.training_budgets import TrainingBudget, TrainingBudgetSpec, TrainingBudgetStatus
from videotrain_api.resource.trainrun import VideoTrainingRun, VideoTrainingRunSpec
from videotrain_api.schema import ApiModel, Json

_INT64_MAX: Final = 2**53
_CLAUSE: Final = re.compile(r"[.;] ")
"""Between two sentences, or halves of one."""
_LIST_KEYS: Final = {"stages": "name", "conditions": "type"}
"""Lists of objects that are merged by a key; all others are replaced as a whole."""
_KEPT: Final = (
    "type",
    "format",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "required",
    "default",
    "description",
)
_NAME: Final = {"pattern": DNS_LABEL.pattern, "maxLength": DNS_LABEL.max_length}
"""A run's name is shorter than Kubernetes allows, since pod names are derived from it."""
PRINTER_COLUMNS: Final = (
    ("Phase", "string", ".status.phase", "Where the run is", 0),
    ("Stage", "string", ".status.stage", "Current stage", 0),
    ("Step", "string", ".status.columns.step", "Last step of the stage and how many it has", 0),
    ("Nodes", "string", ".status.columns.nodes", "Nodes of the running generation and most wanted", 0),
    ("Stepped", "date", ".status.columns.lastStep", "Age of the last step that is known, at most a minute behind", 0),
    ("MFU", "string", ".status.columns.mfu", "Model FLOPs utilisation", 0),
    ("Cost", "string", ".status.columns.cost", "Spent so far", 0),
    ("Age", "date", ".metadata.creationTimestamp", "Time since creation", 0),
    ("Generation", "integer", ".status.generation", "Newest generation of workers", 1),
    ("Forecast", "string", ".status.cost.forecast", "Expected cost of the whole run", 1),
    ("Queue", "string", ".spec.queue.name", "LocalQueue that admits the pods", 1),
)
"""Name, type, path, description and priority of the columns of `kubectl get vtr`."""
BUDGET_COLUMNS: Final = (
    ("State", "string", ".status.state", "WithinBudget, or the strongest action that holds", 0),
    ("Month", "string", ".status.month", "Calendar month in UTC", 0),
    ("Spent", "string", ".status.spent", "Spent in it", 0),
    ("Amount", "string", ".spec.amount", "Most to spend in it", 0),
    ("Currency", "string", ".spec.currency", "Of both", 0),
    ("Percent", "string", ".status.percent", "Spent share", 0),
    ("Age", "date", ".metadata.creationTimestamp", "Time since creation", 0),
    ("Team", "string", ".spec.team", "Whose runs", 1),
    ("Runs", "integer", ".status.runs", "Runs that spent something in the month", 1),
    ("Expected", "string", ".status.expected", "Spent at the end of the month if nodes go on so", 1),
)
"""The same of `kubectl get vtb`."""
SCALE: Final = {"specReplicasPath": ".spec.nodes.max", "statusReplicasPath": ".status.nodes.current"}
"""`kubectl scale --replicas` moves the upper bound. No label selector: autoscaling by a metric of pods would fight the
operator, which decides how many nodes pay."""


def custom_resource_definition() -> Json:
    """The CRD as Kubernetes takes it."""
    names = {
        "kind": vocabulary.KIND,
        "listKind": f"{vocabulary.KIND}List",
        "plural": vocabulary.PLURAL,
        "singular": vocabulary.KIND.lower(),
        "shortNames": [vocabulary.SHORT_NAME],
        "categories": ["training"],
    }
    columns = [_column(*column) for column in PRINTER_COLUMNS]
    return _definition(names, "Namespaced", {"status": {}, "scale": SCALE}, columns, root_schema())


def budget_definition() -> Json:
    """The CRD of team budgets. They are cluster-wide: teams have many namespaces, and must not raise their own."""
    names = {
        "kind": vocabulary.BUDGET_KIND,
        "listKind": f"{vocabulary.BUDGET_KIND}List",
        "plural": vocabulary.BUDGET_PLURAL,
        "singular": vocabulary.BUDGET_KIND.lower(),
        "shortNames": [vocabulary.BUDGET_SHORT_NAME],
        "categories": ["training"],
    }
    columns = [_column(*column) for column in BUDGET_COLUMNS]
    return _definition(names, "Cluster", {"status": {}}, columns, budget_schema())


def definitions() -> list[Json]:
    """Every CRD."""
    return [custom_resource_definition(), budget_definition()]


def _definition(names: Json, scope: str, subresources: Json, columns: list[Json], schema: Json) -> Json:
    version = {
        "name": vocabulary.API_VERSION.partition("/")[2],
        "served": True,
        "storage": True,
        "subresources": subresources,
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names['plural']}.{vocabulary.GROUP}"},
        "spec": {"group": vocabulary.GROUP, "names": names, "scope": scope, "versions": [version]},
    }


def root_schema() -> Json:
    """Structural schema of the whole resource."""
    root = _root(VideoTrainingRun, vocabulary.KIND, VideoTrainingRunSpec, RunStatus)
    root["properties"]["metadata"] = {"type": "object", "properties": {"name": {**_NAME, "type": "string"}}}
    return root | {"x-kubernetes-validations": [rule.to_wire() for rule in RULES[VideoTrainingRun]]}


def budget_schema() -> Json:
    """Structural schema of the whole TrainingBudget."""
    return _root(TrainingBudget, vocabulary.BUDGET_KIND, TrainingBudgetSpec, TrainingBudgetStatus)


def _root(model: type[ApiModel], kind: str, spec: type[ApiModel], status: type[ApiModel]) -> Json:
    return {
        "type": "object",
        "description": _text(model.__doc__),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"Version of the API: {vocabulary.API_VERSION}."},
            "kind": {"type": "string", "description": f"Kind of the resource: {kind}."},
            "metadata": {"type": "object"},
            "spec": structural(spec, "Desired state."),
            "status": structural(status, "Observed state; written by the operator only."),
        },
    }


def structural(model: type[ApiModel], description: str) -> Json:
    """Structural schema of one model and everything below it."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    definitions = schema.pop("$defs", {})
    known = (*RULES.items(), *BUDGET_RULES.items())
    rules = {type_.__name__: [rule.to_wire() for rule in found] for type_, found in known}
    schema["title"] = model.__name__
    return _Converter(definitions, rules).convert(schema) | {"description": description}


class _Converter:
    """Walks a JSON schema of pydantic; holds its definitions and the rules by model name.

    A field that stands in several places is described in full in the one nearest to the root, and by its first
    clause in the others: the whole definition must fit into an annotation.
    """

    def __init__(self, definitions: Json, rules: dict[str, list[dict[str, str]]]) -> None:
        self.definitions = definitions
        self.rules = rules
        self.told: set[str] = set()

    def convert(self, schema: Json, name: str = "") -> Json:
        """One node; `name` is the property under which it stands."""
        schema = self._resolved(schema)
        node = {key: copy.deepcopy(schema[key]) for key in _KEPT if schema.get(key) is not None}
        if "description" in node:
            text = _text(node["description"])
            node["description"] = _first(text) if text in self.told else text
            node["description"] += _spoken_default(node)
            self.told.add(text)
        if node.get("type") == "object":
            node |= self._object(schema, node)
        if node.get("type") == "array":
            node |= self._array(schema, name)
        _bounds(node)
        _formats(node)
        return _ordered(node)

    def _resolved(self, schema: Json) -> Json:
        """Follow a reference and drop null; what stands beside the reference wins."""
        if "anyOf" in schema:
            real = [option for option in schema["anyOf"] if option.get("type") != "null"]
            if len(real) != 1:
                raise ValueError(f"a structural schema cannot express this union: {schema}")
            beside = {key: value for key, value in schema.items() if key != "anyOf"}
            return self._resolved(real[0] | beside)
        if "$ref" in schema:
            target = self.definitions[schema["$ref"].rpartition("/")[2]]
            beside = {key: value for key, value in schema.items() if key not in ("$ref", "title")}
            return self._resolved(target | beside)
        if "const" in schema:
            return schema | {"enum": [schema["const"]]}
        return schema

    def _object(self, schema: Json, node: Json) -> Json:
        values = schema.get("additionalProperties")
        for constrained in schema.get("patternProperties", {}).values():
            values = constrained  # a structural schema cannot constrain names; rules and models do
        if "properties" not in schema:
            if values is True or values is None:
                return {"x-kubernetes-preserve-unknown-fields": True}
            return {"additionalProperties": self.convert(values)}
        fields = schema["properties"]
        # Lists last: what is below their items is farther from the root.
        done = {
            name: self.convert(fields[name], name)
            for name in sorted(fields, key=lambda name: "items" in self._resolved(fields[name]))
        }
        properties = {name: done[name] for name in fields}
        found: Json = {"properties": properties}
        if isinstance(node.get("default"), dict):
            # Spelled out, since the rules at this place are checked on the default as it is written.
            found["default"] = {name: prop["default"] for name, prop in properties.items() if "default" in prop}
        rules = self.rules.get(schema.get("title", ""))
        return found | ({"x-kubernetes-validations": rules} if rules else {})

    def _array(self, schema: Json, name: str) -> Json:
        node: Json = {"items": self.convert(schema["items"])}
        if name in _LIST_KEYS and node["items"].get("type") == "object":
            key = _LIST_KEYS[name]
            node |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
        return node


def _bounds(node: Json) -> None:
    """OpenAPI 3.0 spells an exclusive bound as a flag beside the bound."""
    for word, bound, step in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        value = node.pop(word, None)
        if value is None or abs(value) > _INT64_MAX:
            continue
        if node["type"] == "integer":
            node[bound] = value + step
        else:
            node[bound], node[word] = value, True


def _formats(node: Json) -> None:
    if node.get("type") in ("integer", "number"):
        node["format"] = {"integer": "int64", "number": "double"}[node["type"]]
    if "enum" in node and "type" not in node:
        node["type"] = "integer" if isinstance(node["enum"][0], int) else "string"
    if node.get("default") in ([], {}) and node.get("type") != "object":
        node.pop("default")


def _ordered(node: Json) -> Json:
    first = ["description", "type", "format", "enum", "default", "required", "properties"]
    return {key: node[key] for key in [*first, *sorted(node)] if key in node}


def _text(documentation: str | None) -> str:
    return " ".join((documentation or "").split())


def _first(text: str) -> str:
    return _CLAUSE.split(text)[0].rstrip(".") + "."


def _spoken_default(node: Json) -> str:
    """`kubectl explain` does not show defaults; whole texts are in the reference alone."""
    value = node.get("default")
    if isinstance(value, bool):
        return f" Default: {str(value).lower()}."
    short = isinstance(value, str | int | float) and 0 < len(str(value)) <= 80
    return f" Default: {value}." if short else ""


def _column(name: str, kind: str, path: str, description: str, priority: int) -> Json:
    column: Json = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return column | ({"priority": priority} if priority else {})
