"How Sphinx builds the site; infra_scripts/make/build_docs.py lays out what it reads."

from configparser import ConfigParser
from pathlib import Path

ini = ConfigParser(delimiters=["="])
ini.read(Path(__file__).resolve().parents[1] / "settings.ini", encoding="utf-8")
about = ini["DEFAULT"]

project = html_title = about["title"]
author, release, project_copyright = about["author"], about["version"], about["copyright"]
extensions = ["myst_nb", "sphinx_copybutton"]
nb_execution_mode = "off"  # `make book` has run the notebooks: the site shows those outputs
nb_merge_streams = True
myst_heading_anchors = 3
html_theme = "furo"
html_static_path, html_css_files = ["static"], ["style.css"]
html_copy_source = html_show_sourcelink = False
