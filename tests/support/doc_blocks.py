"""The code blocks of the pages, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "charts/**/*.md")
    for path in ROOT.glob(pattern)
    if not path.name.startswith(".")
)
_FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_ENDS = {"|", "||", "&&", ";", "&"}


class Block(NamedTuple):
    """One block of code."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Those of all pages, in some languages or in all."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, match[2].strip(), match[3]))
    return [block for block in found if not languages or block.language in languages]


def commands(block: Block) -> Iterator[list[str]]:
    """Words of each command of a shell block: without comments, assignments before it, and what is redirected."""
    for line in re.sub(r"\\\n", " ", block.text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        redirected = False
        for word in [*lexer, ";"]:
            if word in _ENDS:
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words = words[1:]
                if words:
                    yield words
                words, redirected = [], False
            elif set(word) <= {"<", ">"}:
                redirected = True
            elif redirected:
                redirected = False
            else:
                words.append(word)
