"Write docs/regions.md, which lists the AWS regions where the engine can be deployed."

from pathlib import Path

import boto3

from sentiment_engine.commands import Parser
from sentiment_engine.deploy.account import check_region, missing_images
from sentiment_engine.deploy.phases import TARGET_PARAMETERS
from sentiment_engine.settings import Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "regions.md"
GPU, PROCESSOR = str(TARGET_PARAMETERS["aws"]["training_instance"]), "ml.m5.4xlarge"
HEAD = f"""<!-- Written by infra_scripts/make/render_regions.py (`make docs`). -->

# Regions

The engine needs a region where AWS has the container images for training and serving. The table comes from the
SageMaker SDK; `deploy.py` runs the same checks before it changes anything.

- **any model**: everything works, with training on a GPU ({GPU}).
- **released model**: no image trains on a GPU there. Use `--model released`, which trains nothing, or
  `--training-instance {PROCESSOR}` with time to spare.
- **no**: no image serves the model, or CloudFront does not serve the page under its own name.

`--firewall` and `--domain` need us-east-1. An instance type can still be missing in a region, or have a quota of 0.

| Region | Endpoint | Training on a GPU | Training on a processor | Deploys |
|---|---|---|---|---|
"""


def row(region: str) -> str:
    "Describe one region as a row of the table."
    session = boto3.Session(region_name=region)
    images = [not missing_images(region)]
    images += [f"training on {machine}" not in missing_images(region, machine) for machine in (GPU, PROCESSOR)]
    any_model, released = (check_region(session, Settings(), training).fine for training in (GPU, ""))
    deploys = "any model" if any_model else "released model" if released else "no"
    return "| " + " | ".join([region, *("yes" if there else "–" for there in images), deploys]) + " |\n"


def page() -> str:
    "Write the page: every region that boto3 knows for SageMaker, in every partition."
    session = boto3.Session()
    partitions = session.get_available_partitions()
    return HEAD + "".join(row(r) for p in partitions for r in session.get_available_regions("sagemaker", p))


if __name__ == "__main__":
    Parser(description=__doc__).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
