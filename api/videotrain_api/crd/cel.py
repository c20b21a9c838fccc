"""CEL rules of the CRD, and the short forms in which most of them are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal["FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate"]


@dataclass(frozen=True)
class CelRule:
    """One entry of x-kubernetes-validations."""

    rule: str
    message: str
    path: str | None = None
    """Field that is blamed, relative to the model, such as `.min`."""
    reason: Reason = "FieldValueInvalid"

    def to_wire(self) -> dict[str, str]:
        """As it stands in the CRD."""
        wire = {"rule": self.rule, "message": self.message, "reason": self.reason}
        return wire | ({"fieldPath": self.path} if self.path else {})


def same(field: str, *, always: bool = False) -> str:
    """The expression that an update leaves a field as it was.

    Args:
        field: such as `spec.image`.
        always: the field is always there, being required or having a default. Each look at a field costs the server
            time at every write of a status too.
    """
    new, old = f"self.{field}", f"oldSelf.{field}"
    equal = f"{new} == {old}"
    return equal if always else f"has({new}) ? has({old}) && {equal} : !has({old})"


def names(values: tuple[str, ...]) -> str:
    """A CEL list of strings."""
    return "[" + ", ".join(f"'{value}'" for value in values) + "]"


def at_most(low: str, high: str, advice: str = "") -> CelRule:
    """Two bounds in order, where both are set."""
    rule = f"!has(self.{low}) || !has(self.{high}) || self.{low} <= self.{high}"
    return CelRule(rule, f"{low} must be at most {high}{advice}", f".{low}")
