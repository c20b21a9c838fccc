"""The contract type `allowed` of .importlinter: what a module may import, instead of a list of what it may not.

A list of forbidden modules forgets the next one; this one has to be asked for it. Direct imports count, outside the
source package itself. What an allowed module imports is its own affair, and the affair of other contracts.
"""

from __future__ import annotations

import sys
from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output
from importlinter.domain.helpers import module_expressions_to_modules


class AllowedImports(Contract):
    """`source_modules` (packages or modules) import `allowed_modules` and what lies in them, and nothing else."""

    type_name = "allowed"

    source_modules = fields.SetField(subfield=fields.ModuleExpressionField())
    allowed_modules = fields.SetField(subfield=fields.StringField())
    allow_standard_library = fields.BooleanField(required=False, default=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Look at every import of every source module."""
        allowed = {"__future__", *self.allowed_modules}
        if self.allow_standard_library:
            allowed |= sys.stdlib_module_names
        found = []
        for source in sorted(module.name for module in module_expressions_to_modules(graph, self.source_modules)):
            for importer in sorted({source, *graph.find_descendants(source)}):
                for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                    if not any(_within(imported, package) for package in (source, *allowed)):
                        found += graph.get_import_details(importer=importer, imported=imported)
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Name file, line and what is allowed."""
        for item in check.metadata["found"]:
            output.print_error(_told(item), bold=True)
        output.print_error(f"Allowed here: {', '.join(sorted(self.allowed_modules))}.")


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _told(item: dict[str, Any]) -> str:
    return f"{item['importer']} imports {item['imported']} (l. {item['line_number']}): {item['line_contents']}"
