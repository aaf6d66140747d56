"""Write README.md from nbs/index.ipynb: hidden cells dropped, directives stripped, links made relative to the root."""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser

ROOT = Path(__file__).resolve().parents[2]
NOTE = "<!-- Written from nbs/index.ipynb by `make docs`: edit the notebook. -->\n\n"


def readme() -> str:
    "Render the index notebook as Markdown."
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    notebook.cells = [c for c in notebook.cells if not re.match(r"\s*#\s*\|\s*hide", c.source)]
    for cell in notebook.cells:
        cell.source = re.sub(r"^\s*#\s*\|.*\n?", "", cell.source, flags=re.MULTILINE)
    notebook.cells = [c for c in notebook.cells if c.source.strip()]
    body, _ = MarkdownExporter().from_notebook_node(notebook)
    # Links in the notebook are relative to nbs/, those in README to the root.
    body = re.sub(r"\]\((?=[\w/]+\.ipynb)", "](nbs/", body)
    body = re.sub(r"(\]\(|src=\")\.\./", r"\1", body)
    return NOTE + re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


@tells_cause
def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if README.md would change")
    path, text = ROOT / "README.md", readme()
    if not parser.parse_args().check:
        path.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
        sys.exit("README.md differs from nbs/index.ipynb: run `make docs`")


if __name__ == "__main__":
    main()
