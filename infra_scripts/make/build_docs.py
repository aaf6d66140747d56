"""Build the site of the notebooks and documents into _docs/site. A broken link fails the build."""

import json
import os
import re
import shutil
import subprocess
import sys
import webbrowser
from configparser import ConfigParser
from pathlib import Path

from sentiment_engine.commands import Parser

ROOT = Path(__file__).resolve().parents[2]
PARTS = {  # the sidebar: caption and documents
    "Walkthroughs": "nbs/[0-9]*",
    "Data": "nbs/data/*",
    "Model": "nbs/model/*",
    "Service": "nbs/service/*",
    "Deployment": "nbs/deploy/*",
    "Local cloud": "nbs/local/*",
    "Shared": "nbs/[a-z]*",
    "Guides": "docs/*",
    "Project": "CONTRIBUTING\nCHANGELOG\nmodels/released/README",
}
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)\s#]+)")
IMAGES = (".svg", ".png", ".gif", ".webp")


def documents() -> list[Path]:
    "List the files that become pages of the site, besides README, which becomes the first."
    found = [p for p in (ROOT / "nbs").rglob("*.ipynb") if p.name != "index.ipynb" and "checkpoints" not in str(p)]
    named = [ROOT / f"{name}.md" for name in PARTS["Project"].split()]
    return sorted([*found, *(ROOT / "docs").glob("*.md"), *(path for path in named if path.exists())])


def with_links(text: str, document: Path, pages: set[Path], address: str) -> str:
    "Point links to pages at the site, and links to other files at the repository. Raises FileNotFoundError."

    def pointed(link: re.Match) -> str:
        target = Path(os.path.normpath(document.parent / link[2]))
        if not target.exists():
            raise FileNotFoundError(f"{document.relative_to(ROOT)} links to {link[2]}, which does not exist")
        if target == ROOT / "README.md":
            return link[1] + os.path.relpath(ROOT / "index.md", document.parent)
        if target in pages or target.suffix in IMAGES:
            return link[0]
        return f"{link[1]}{address}/{target.relative_to(ROOT).as_posix()}"

    return LINK.sub(pointed, text)


def shown_cells(notebook: dict) -> list[dict]:
    "Return the cells that readers see, without nbdev's directives."
    cells = [c for c in notebook["cells"] if not re.match(r"\s*#\|\s*(hide|default_exp)", "".join(c["source"]))]
    for cell in (c for c in cells if c["cell_type"] == "code"):
        cell["source"] = re.sub(r"^#\|.*\n?", "", "".join(cell["source"]), flags=re.MULTILINE)
    return cells


def rendered(document: Path, pages: set[Path], address: str) -> str:
    "Return a document in the form that Sphinx reads."
    text = document.read_text(encoding="utf-8")
    if document.suffix != ".ipynb":
        return with_links(text, document, pages, address)
    notebook = json.loads(text)
    notebook["cells"] = shown_cells(notebook)
    for cell in (c for c in notebook["cells"] if c["cell_type"] == "markdown"):
        cell["source"] = with_links("".join(cell["source"]), document, pages, address)
    return json.dumps(notebook)


def write(path: Path, text: str):
    "Write a file unless it already contains `text`, because Sphinx rebuilds files that are newer than their pages."
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def lay_out(folder: Path):
    "Write Sphinx's source folder."
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    about = ini["DEFAULT"]
    address, pages = f"{about['git_url']}/blob/{about['branch']}", set(documents())
    texts = {page.relative_to(ROOT): rendered(page, pages, address) for page in pages}
    trees = (f"```{{toctree}}\n:caption: {name}\n:hidden:\n:glob:\n\n{of}\n```" for name, of in PARTS.items())
    texts[Path("index.md")] = "\n\n".join([rendered(ROOT / "README.md", pages, address), *trees])
    for old in (p for p in folder.rglob("*") if p.suffix in (".md", ".ipynb") and p.relative_to(folder) not in texts):
        old.unlink()
    for path, text in texts.items():
        write(folder / path, text)
    shutil.copytree(ROOT / "images", folder / "images", dirs_exist_ok=True)


def main() -> int:
    "Run the script."
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "_docs", help="the folder to write to (default: _docs)")
    parser.add_argument("--open", action="store_true", help="open the site in a browser")
    args = parser.parse_args()
    source, site = args.out / "source", args.out / "site"
    try:
        lay_out(source)
    except FileNotFoundError as e:
        print(e, file=sys.stderr)
        return 1
    words = ["-c", str(ROOT / "docs"), "-d", str(args.out / "cache"), "-W", "--keep-going", "-q", "-j", "auto"]
    done = subprocess.run([sys.executable, "-m", "sphinx", "-b", "html", *words, str(source), str(site)])
    if done.returncode:
        return done.returncode
    shutil.copytree(ROOT / "images", site / "images", dirs_exist_ok=True)  # of HTML, which Sphinx does not read
    print(f"the site is in {site}: open {site / 'index.html'}")
    if args.open:
        webbrowser.open((site / "index.html").as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(main())
