"Packaging: everything it says is read from settings.ini."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="])
parser.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
config = parser["DEFAULT"]
extras = {key.removesuffix("_requirements"): config[key].split() for key in config if key.endswith("_requirements")}

setup(
    name=config["lib_name"],
    version=config["version"],
    description=config["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=config["author"],
    author_email=config["author_email"],
    url=config["git_url"],
    license="Apache-2.0",
    keywords=config["keywords"].split(),
    packages=find_packages(include=["sentiment_engine*"]),
    include_package_data=True,
    install_requires=config["requirements"].split(),
    extras_require=extras,
    python_requires=f">={config['min_python']},<3.14",
    zip_safe=False,
)
