"""Reasons and messages come from one vocabulary, and all of it is used."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from videotrain_api import reasons
from videotrain_api.budget_reasons import BUDGET_NOTICES, BudgetMessage, BudgetReason
from videotrain_api.reasons import NOTICES, FaultReason, Message, Reason
from videotrain_api.vocabulary import BudgetCondition, Condition, GenerationReason

OPERATOR = Path(__file__).parents[3] / "operator" / "videotrain_operator"
SOURCES = sorted(
    path for room in ("accounting", "planner", "manager", "cluster") for path in (OPERATOR / room).rglob("*.py")
)
SOURCES += [OPERATOR / "reconcile.py"]
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}
REASON_AT = {"tell": 1, "set_condition": 3, "make_condition": 2, "emit_event": 2, "fail_run": 1, "end_generation": 1}
"""Which argument of these functions is a reason."""
MESSAGE_AT = {name: at + 1 for name, at in REASON_AT.items()}
PHASES = {"Failed", "Succeeded"}
"""Phases of pods that are spelt like a reason."""


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                function = node.func
                name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
                yield f"{path.relative_to(OPERATOR)}:{node.lineno}", name, node


def argument(call: ast.Call, at: int, name: str) -> ast.expr | None:
    named = next((word.value for word in call.keywords if word.arg == name), None)
    return named or (call.args[at] if len(call.args) > at else None)


def literals(node: ast.AST | None) -> list[str]:
    """Texts in an expression, but for keys that are looked up."""
    if node is None or isinstance(node, ast.Subscript):
        return []
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) and node.value else []
    return [word for below in ast.iter_child_nodes(node) for word in literals(below)]


def test_no_reason_is_a_literal():
    found = [
        f"{where}: {word!r}"
        for where, name, call in calls()
        for word in literals(argument(call, REASON_AT[name], "reason") if name in REASON_AT else None)
    ]
    found += [
        f"{where}: {word!r}"
        for where, name, call in calls()
        if name in ("Fault", "Event")
        for word in literals(argument(call, 99, "reason"))
    ]
    assert found == []


def test_no_word_of_the_vocabulary_is_spelt_out_in_the_planner():
    words = {str(item) for kind in (Reason, GenerationReason, FaultReason) for item in kind} - PHASES
    budget_action = {"Shrink"}
    found = [
        f"{path.name}: {word!r}"
        for path, tree in TREES.items()
        if path.parent.name in ("planner", "manager") or path.name == "reconcile.py"
        for word in literals(tree)
        if word in words - budget_action
    ]
    assert found == []


def test_no_message_is_a_literal():
    found = [
        f"{where}: {word!r}"
        for where, name, call in calls()
        for word in literals(argument(call, MESSAGE_AT[name], "message") if name in MESSAGE_AT else None)
        if isinstance(argument(call, MESSAGE_AT[name], "message"), ast.Constant | ast.JoinedStr)
    ]
    assert found == []


def test_messages_are_filled_with_what_their_form_asks_for():
    wrong = []
    for where, name, call in calls():
        form = call.func.value if isinstance(call.func, ast.Attribute) else None
        if name == "text" and isinstance(form, ast.Attribute) and ast.unparse(form).startswith("Message."):
            given, asked = {str(word.arg) for word in call.keywords}, Message[form.attr].braces
            if given != asked:
                wrong.append(f"{where}: {form.attr} asks for {sorted(asked)}, got {sorted(given)}")
    assert wrong == []


def test_every_reason_and_message_is_used_and_documented():
    code = "\n".join(path.read_text() for path in SOURCES)
    for kind in (Reason, FaultReason, Message, BudgetReason, BudgetMessage):
        unused = [item.name for item in kind if not re.search(rf"\b{kind.__name__}\.{item.name}\b", code)]
        assert unused == [], kind.__name__
    told = {notice.reason for notice in NOTICES}
    ends_of_generations = {Reason.COMPLETED}
    assert {*Reason, *GenerationReason} - told == ends_of_generations
    assert {*BudgetReason} == {notice.reason for notice in BUDGET_NOTICES}


def test_every_condition_and_every_advice_is_told():
    assert {notice.where for notice in NOTICES} == {"event", *Condition}
    assert {notice.where for notice in BUDGET_NOTICES} == {"event", *BudgetCondition}
    assert [notice for notice in (*NOTICES, *BUDGET_NOTICES) if not notice.advice.endswith(".")] == []
    told = [(notice.where, notice.type, notice.reason, notice.message) for notice in NOTICES]
    assert len(told) == len(set(told)), "the same thing twice"
    assert reasons.__doc__
