"""Values that are made without Python's checks: what those would have found is looked for here instead."""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from inspect import getsource

import loadwise.decision
import loadwise.optimizer

# Where it stands, the names of the fields, and what is given for them.
Made = tuple[str, tuple[str, ...], list[ast.expr]]


def made() -> Iterator[Made]:
    """Each `new(Name, (...))` in the packages in which requests are decided."""
    for package in (loadwise.decision, loadwise.optimizer):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = import_module(found.name)
            for node in ast.walk(ast.parse(getsource(module))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "new":
                    of, values = node.args
                    assert isinstance(of, ast.Name)
                    fields = getattr(module, of.id)._fields
                    for each in [values.body, values.orelse] if isinstance(values, ast.IfExp) else [values]:
                        assert isinstance(each, ast.Tuple)
                        yield f"{module.__name__}:{each.lineno}", fields, each.elts


MADE = list(made())


def named(value: ast.expr) -> str | None:
    """The name that a value goes by; None for one that is worked out on the spot."""
    if isinstance(value, ast.Name):
        return value.id
    return value.attr if isinstance(value, ast.Attribute) else None


def test_every_field_is_given() -> None:
    assert len(MADE) > 10
    assert [where for where, fields, values in MADE if len(values) != len(fields)] == []


def test_what_bears_a_fields_name_stands_in_its_place() -> None:
    wrong = [
        (where, field, named(value))
        for where, fields, values in MADE
        for field, value in zip(fields, values, strict=True)
        if named(value) in fields and named(value) != field
    ]
    assert wrong == []
