"""The names that a cell binds, read from its syntax tree before it runs.

Only what runs at the cell's top level counts: the bodies of ``if``, ``try``, ``with`` and loops do, those of functions
and classes don't. Whether a name was really bound, the namespace says after the run.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Definitions"]

# Magics that run their body in the notebook's namespace. Others (%%writefile, %%bash) define nothing there.
_TRANSPARENT_MAGICS = frozenset({"capture", "prun", "time"})


@dataclass(frozen=True)
class Definitions:
    """The names that a cell binds at its top level, in order, by how it binds them."""

    classes: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    imported: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """Targets of assignments, ``for``, ``with`` and the like."""
    awaits: bool = False
    """Whether it awaits outside any function."""
    previous: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What these names meant before the cell ran, where they meant something."""

    @property
    def bound(self) -> frozenset[str]:
        """Every name that the cell binds."""
        return frozenset(self.classes + self.functions + self.imported + self.others)

    @classmethod
    def of(cls, source: str, *, shell: Any = None, namespace: Mapping[str, Any] | None = None) -> Definitions:
        """Read a cell before it runs.

        Parameters
        ----------
        source
            The cell's body.
        shell
            The IPython shell that translates magics and shell commands into Python; without one they
            are syntax errors.
        namespace
            The notebook's names as they are before the run, to tell new objects from old ones.

        Returns
        -------
        Definitions
            Empty when the cell is not valid Python: running it will say so better.
        """
        collector = _Collector(shell)
        collector.read(source)
        kept = {name: namespace[name] for name in collector.names if name in namespace} if namespace else {}
        return cls(
            classes=collector.of_kind("class"),
            functions=collector.of_kind("function"),
            imported=collector.of_kind("import"),
            others=collector.of_kind("other"),
            awaits=collector.awaits,
            previous=kept,
        )


class _Collector(ast.NodeVisitor):
    """Visits what runs at the top level: into ``if``, ``try``, ``with`` and loops, not into functions and classes."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self.names: dict[str, str] = {}
        self.awaits = False

    def of_kind(self, kind: str) -> tuple[str, ...]:
        return tuple(name for name, bound_by in self.names.items() if bound_by == kind)

    def read(self, source: str) -> None:
        try:
            python = self._shell.transform_cell(source) if self._shell is not None else source
            # What `await` at the top level needs to be read as Python at all.
            tree = compile(
                python,
                "<cell>",
                "exec",
                ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
                dont_inherit=True,
            )
        except (SyntaxError, ValueError):
            return
        self.visit(tree)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.names[node.name] = "class"

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.names[node.name] = "function"

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - the name that ast looks for

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """Look no further: what it binds is its own."""

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            self.names[alias.asname or alias.name.partition(".")[0]] = "import"

    visit_ImportFrom = visit_Import  # noqa: N815 - the name that ast looks for

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.names[node.id] = "other"

    def visit_Await(self, node: ast.Await) -> None:
        self.awaits = True
        self.generic_visit(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        self.awaits = True
        self.generic_visit(node)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        self.awaits = True
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        body = _nested_body(node)
        if body is not None:
            self.read(body)
        self.generic_visit(node)


def _nested_body(node: ast.Call) -> str | None:
    """Return the body of ``%%time`` and its like inside the cell."""
    match node:
        case ast.Call(
            func=ast.Attribute(attr="run_cell_magic"),
            args=[ast.Constant(value=name), ast.Constant(), ast.Constant(value=str(body))],
        ) if name in _TRANSPARENT_MAGICS:
            return body
    return None
