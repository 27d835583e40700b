"""docs/files.md: every file of the package with the first sentence of its docstring.

    python -m tests.file_list

writes it anew; a test compares it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATH = ROOT / "docs" / "files.md"
HEAD = """# The files of the package

One line a file: the first sentence of its docstring. `python -m tests.file_list` writes this page.
[architecture.md](architecture.md) says how the parts work together.
"""


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence, on one line."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[^.][.])\s+(?=[A-Z])", paragraph)[0]


def listing() -> str:
    """The whole page."""
    parts = [HEAD]
    package = ROOT / "paceline"
    folders = sorted({path.parent for path in package.rglob("*.py")})
    for folder in folders:
        lines = []
        for path in sorted(folder.glob("*.py")):
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            if doc:
                lines.append(f"- `{path.name}`: {first_sentence(doc)}")
        if lines:
            parts.append(f"\n## {folder.relative_to(ROOT)}/\n\n" + "\n".join(lines) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    PATH.write_text(listing(), encoding="utf-8")
