"""Deploy the engine: run the numbered notebooks with papermill, in order, on this machine or on AWS.

What is up to date is left alone: each phase leaves a fingerprint of its notebook, its parameters, the sources and the
phases before it in the artifacts bucket, and the phases whose fingerprints differ run.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import papermill
from aws_target import (
    CHOICES,
    REVIEWS,
    TRAINING,
    add_account_options,
    add_variant_options,
    adopt_model,
    asked_for,
    before,
    check_options,
    chosen_environment,
    enter,
    is_adopted,
    places,
    recall,
)
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError
from kernels import OwnKernel
from loose_ends import tie_up
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from sentiment_engine.causes import cause, tells_cause, with_cause
from sentiment_engine.commands import Parser, at_least, port
from sentiment_engine.data.ingest import category_addresses
from sentiment_engine.data.reviews import DataError, check_reviews, find_files
from sentiment_engine.deploy.account import mask_accounts
from sentiment_engine.deploy.endpoint import trial_machines
from sentiment_engine.deploy.foundation import site_parameters
from sentiment_engine.deploy.stacks import stack_outputs
from sentiment_engine.local.cloud import LocalCloud
from sentiment_engine.model.wheels import fetch_wheels
from sentiment_engine.settings import (
    connect,
    engine_stack,
    environment_of,
    foundation_stack,
    settings_from,
)

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "nbs"
RUNS = ROOT / "runs"
PHASES = ("00", "01", "02", "03", "04", "05", "06", "07")  # 08 explains the local cloud, which must already run
SETTLED = "05"  # from this phase on the settings of the environment matter; nobody trains again for another alarm_email
TRYING = "04"  # which tries the model on the machines of the settings: on other machines it is tried again
FIRST = "00"  # deploys the site, of which the phases before SETTLED know nothing; nobody trains again for a domain
SITE = ("domain_name", "hosted_zone_id")  # parameters of the notebooks that only the site is told
TEACHING = ("01", "02", "03")  # what the released model does without
DEMONSTRATIONS = {"visit": False}  # parameters of what a notebook shows its readers: a deployment wakes no model
STAMPS = "deployments/phases.json"  # key in the artifacts bucket
SOURCES = (
    "nbs/**/*.ipynb",
    "sentiment_engine/**/*.py",
    "sentiment_engine/**/*.toml",
    "lambdas/*/*.py",
    "infra_scripts/*.py",
    "infra_scripts/templates/*",
)
SOURCES += ("website/*", "models/released/*")

# What differs between the targets. The notebooks' own defaults fit one machine.
TARGET_PARAMETERS = {
    "local": {},
    "aws": {
        "categories": "Musical_Instruments",
        "base_model": "distilbert-base-uncased",
        "sample_rows": 150_000,
        "training_instance": "ml.g4dn.xlarge",
        "max_length": 256,
        "wheels": True,
    },
}


@dataclass(frozen=True)
class Phase:
    "One numbered notebook with the parameters it takes."

    notebook: Path
    parameters: dict
    fingerprint: str = ""  # of the first phase: what the next ones build on, a plus sign, and the site

    @property
    def title(self) -> str:
        "Name the phase as a person would: 03 model training."
        return self.notebook.stem.replace("_", " ")


def data_fingerprint(data: str) -> str:
    "Describe a data folder by its files' names, sizes and times, without reading them."
    files = map(Path, find_files(data)) if data else []
    return json.dumps([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files])


def sources_fingerprint() -> str:
    "Hash everything the phases are made of."
    digest = hashlib.sha256()
    for path in sorted({p for pattern in SOURCES for p in ROOT.glob(pattern) if p.is_file()}):
        if "__pycache__" not in path.parts:
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def plan(parameters: dict) -> list[Phase]:
    "List the phases, each with those parameters its notebook declares and a fingerprint that includes the one before."
    phases, previous = [], sources_fingerprint() + data_fingerprint(parameters.get("data") or "")
    learnt = parameters.get("deploy_model") == "released" or parameters.get("model_data")
    settings = settings_from(os.environ)
    site = site_parameters(settings, *(parameters.get(name) or "" for name in SITE))
    for number in (number for number in PHASES if not (learnt and number in TEACHING)):
        (notebook,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
        declared = papermill.inspect_notebook(str(notebook))
        own = {k: v for k, v in (parameters | DEMONSTRATIONS).items() if k in declared and v is not None}
        known = {name: value for name, value in own.items() if name not in SITE}
        known |= environment_of(settings) | site if number >= SETTLED else {}
        known |= {"machines": trial_machines(settings)} if number == TRYING else {}
        previous = _hash(previous, notebook.name, known)
        phases.append(Phase(notebook, own, f"{previous}+{_hash(site)}" if number == FIRST else previous))
    return phases


def _hash(*parts: object) -> str:
    "Hash what can be written as JSON."
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def parameters_of(target: str, given: dict) -> dict:
    "Complete what was given for the notebooks by what the target differs in."
    return {"target": target} | TARGET_PARAMETERS[target] | {k: v for k, v in given.items() if v is not None}


class Stamps:
    "Fingerprints of the phases that a cloud holds, kept in that cloud."

    def __init__(self, session: boto3.Session, stack: str, asked: dict | None = None):
        self.session, self.stack, self.asked = session, stack, asked

    def _bucket(self) -> str | None:
        try:
            return stack_outputs(self.session.client("cloudformation"), self.stack)["ArtifactsBucket"]
        except LookupError:
            return None

    def read(self) -> dict[str, str]:
        "Return notebook name → fingerprint; empty for a cloud nothing was deployed to."
        if not (bucket := self._bucket()):
            return {}
        try:
            return json.load(self.session.client("s3").get_object(Bucket=bucket, Key=STAMPS)["Body"])
        except ClientError as e:
            if e.response["Error"]["Code"] in ("NoSuchKey", "NoSuchBucket", "404"):
                return {}
            raise

    def write(self, phase: Phase):
        "Note that `phase` stands; whatever was built on another state of it is no longer known to fit."
        stamps, name = self.read(), phase.notebook.stem
        base, apart, _ = phase.fingerprint.partition("+")
        # A phase that depends on the site has it in its own fingerprint, so another site is no reason to drop one.
        same = apart and stamps.get(name, "").partition("+")[0] == base
        kept = {other: stamp for other, stamp in stamps.items() if other < name or same}
        body = json.dumps(kept | {name: phase.fingerprint}, indent=1)
        self.session.client("s3").put_object(Bucket=self._bucket(), Key=STAMPS, Body=body.encode())
        self.note()

    def forget(self, number: str):
        "Let a phase run again, the next time that it is wanted."
        kept = {name: stamp for name, stamp in self.read().items() if not name.startswith(number)}
        self.session.client("s3").put_object(Bucket=self._bucket(), Key=STAMPS, Body=json.dumps(kept).encode())

    def note(self):
        "Remember how this deployment was asked for, if it is to be remembered and there is a place for it yet."
        if self.asked is not None and (bucket := self._bucket()):
            self.session.client("s3").put_object(Bucket=bucket, Key=CHOICES, Body=json.dumps(self.asked).encode())


def outdated(phases: list[Phase], stamps: dict[str, str]) -> list[Phase]:
    "Return the phases whose fingerprint is not the one that stands; each fingerprint covers the phases before."
    return [phase for phase in phases if stamps.get(phase.notebook.stem) != phase.fingerprint]


class Narrator:
    "A progress bar over the phases that also shows the last line the running notebook printed."

    def __init__(self, total: int):
        live = sys.stdout.isatty()  # a log gets one line a phase instead
        form = "{bar:16} {n_fmt}/{total_fmt}  {desc} {postfix}"
        self.bar = tqdm(total=total, bar_format=form, file=sys.stdout, disable=not live)
        self.line, self.title, self.start, self.done = "", "", time.monotonic(), threading.Event()
        if live:
            threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self):
        while not self.done.wait(1):
            self._show()

    def _show(self):
        self.bar.set_description_str(f"{self.title}  {time.monotonic() - self.start:.0f} s", refresh=False)
        self.bar.set_postfix_str(self.line[:60])

    def begin(self, title: str):
        self.title, self.line, self.start = title, "", time.monotonic()
        self._show()

    def end(self):
        self.bar.clear()
        self.bar.write(f"  done  {self.title:28} {time.monotonic() - self.start:6.1f} s", file=sys.stdout)
        self.line = ""
        self.bar.update()

    def close(self):
        self.done.set()
        self.bar.set_postfix_str("")
        self.bar.close()

    def write(self, text: str):
        "Take what a notebook prints; its last line is what is shown."
        if lines := [line.strip() for line in text.splitlines() if line.strip()]:
            self.line = mask_accounts(lines[-1])

    def flush(self):
        pass


def run_phases(phases: Iterable[Phase], stamps: Stamps, folder: Path):
    "Execute the phases' notebooks into `folder` and stamp each one that succeeds."
    phases = list(phases)
    folder.mkdir(parents=True, exist_ok=True)
    narrator = Narrator(len(phases))
    try:
        for phase in phases:
            narrator.begin(phase.title)
            papermill.execute_notebook(
                phase.notebook,
                folder / phase.notebook.name,
                parameters=phase.parameters,
                cwd=NOTEBOOKS,
                progress_bar=False,
                stdout_file=narrator,
                kernel_name="python3",  # of which OwnKernel keeps only the name
                kernel_manager_class=OwnKernel,
                extra_arguments=["--IPKernelApp.log_level=50"],  # a kernel that is told to stop is no news
            )
            stamps.write(phase)
            narrator.end()
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it would print the cell that was broken off
        raise
    finally:
        narrator.close()


def upcoming(
    phases: list[Phase],
    stamps: dict[str, str],  # of what stands
    only: str | None = None,  # number of the one phase to run
    start: str | None = None,  # number of the first phase to run
    force: bool = False,  # run every phase
    given: bool = False,  # whether a model is given now: all that come after the training are to run
) -> list[Phase]:
    "Return the phases that are to run."
    if given:
        return phases
    if only:
        return [p for p in phases if p.notebook.name.startswith(only)]
    if start:
        return [p for p in phases if p.notebook.name >= start]
    return phases if force else outdated(phases, stamps)


def deploy(
    target: str = "local",
    only: str | None = None,  # as in `upcoming`
    start: str | None = None,
    force: bool = False,
    asked: dict | None = None,  # what is to be remembered of this deployment
    **parameters,  # of the notebooks; None is left out
) -> dict[str, str]:  # outputs of the engine stack; empty if it has not been deployed yet
    "Bring the cloud that the environment names up to date. Raises PapermillExecutionError where a notebook fails."
    session, settings = connect(target), settings_from(os.environ)
    stamps = Stamps(session, foundation_stack(settings), asked)
    stamps.note()
    chosen = upcoming(plan(parameters_of(target, parameters)), stamps.read(), only, start, force)
    if chosen:
        run_phases(chosen, stamps, RUNS / time.strftime("%Y-%m-%dT%H-%M-%S"))
    try:
        return stack_outputs(session.client("cloudformation"), engine_stack(settings))
    except LookupError:
        return {}


def deploy_given(
    target: str,
    model_data: str,  # a model.tar.gz, here or in S3
    asked: dict | None = None,  # as `deploy`
    **choices,  # of `deploy`
) -> dict[str, str]:  # as `deploy`
    "Deploy a model that exists already: nothing is cleaned, explored or trained."
    chosen = {name: value for name, value in choices.items() if name not in ("only", "start", "force")}
    chosen |= {"deploy_model": "candidate", "model_data": model_data}  # what was given, not what is better
    deploy(target, only="00", asked=asked, **chosen)
    session, settings = connect(target), settings_from(os.environ)
    address = adopt_model(session, settings, model_data)
    Stamps(session, foundation_stack(settings)).forget("03")  # whose model is the newest no more
    print(f"  the model: {address}")
    if asked:  # the file may not be there the next time; its copy is
        asked = asked | {"options": asked["options"] | {"model_data": address}}
    return deploy(target, start="04", asked=asked, **chosen)


def add_ports(parser: argparse.ArgumentParser):
    "Add the options that choose where the local cloud listens."
    free = "without it the usual one, or a free one if that is taken"
    parser.add_argument("--port", type=port, metavar="N", help=f"port of AWS; {free}")
    parser.add_argument("--site-port", type=port, metavar="N", help=f"port of the page; {free}")


@contextmanager
def local_cloud(
    start: bool = True,  # whether to start one if none runs
    ports: argparse.Namespace | None = None,  # options of `add_ports`
) -> Iterator[LocalCloud]:
    "Use this folder's local cloud, and lead boto3 there; one that was started for this is stopped at the end."
    wanted = {"port": ports and ports.port, "site_port": ports and ports.site_port}
    cloud = LocalCloud(ROOT / ".local-cloud", **wanted)
    ran = cloud.running
    if not ran and not start:
        raise RuntimeError("the local cloud does not run: python infra_scripts/local_cloud.py start")
    if ran and any(port and port != cloud.place[name] for name, port in wanted.items()):
        raise RuntimeError(f"the local cloud of this folder runs already, with the page at {cloud.site_url}")
    cloud.start(detached=False)
    try:
        cloud.enter()
        yield cloud
    finally:
        if not ran:
            cloud.stop()


def _instance_type(text: str) -> str:
    "Read an instance type of SageMaker."
    if not re.fullmatch(r"ml\.[a-z0-9-]+\.[a-z0-9]+", text):
        raise argparse.ArgumentTypeError(f"must be an instance type of SageMaker, such as ml.g4dn.xlarge, not {text}")
    return text


def add_options(parser: argparse.ArgumentParser):
    "Add the options that choose data and sizes."
    rows, minutes = at_least(100), at_least(0.1, float)
    reviews = parser.add_mutually_exclusive_group()
    reviews.add_argument("--data", metavar="DIR", help="folder of *.jsonl(.gz) in the Amazon Reviews 2023 schema")
    reviews.add_argument("--categories", metavar="NAMES", help="categories of Amazon Reviews 2023, with commas")
    reviews.add_argument("--rows", type=rows, metavar="N", help="reviews to generate")
    parser.add_argument("--source", metavar="ADDRESS", help="https:// or s3:// with {category} in it, to fetch from")
    parser.add_argument(
        "--model", choices=("better", "candidate", "released"), help="what to deploy; released: without any training"
    )
    base = "what the model is fine-tuned from: minilm, or a name on the Hugging Face hub"
    parser.add_argument("--base-model", metavar="NAME", help=base)
    parser.add_argument("--sample-rows", type=rows, metavar="N", help="most reviews to train on")
    parser.add_argument("--training-instance", type=_instance_type, metavar="TYPE", help="machine of the training job")
    parser.add_argument("--idle-minutes", type=minutes, metavar="M", help="minutes from the last prediction to the end")


def chosen_parameters(options: argparse.Namespace) -> dict:
    "Turn the options of `add_options` into notebook parameters."
    of_training = {name: getattr(options, name) for name in (*REVIEWS, *TRAINING)}
    if options.model == "released" and (useless := [name for name, value in of_training.items() if value]):
        said = ", ".join(f"--{name.replace('_', '-')}" for name in useless)
        raise SystemExit(f"--model=released is not trained: leave {said} out")
    data = str(Path(options.data).expanduser().resolve()) if options.data else None
    if data and not Path(data).is_dir():
        raise SystemExit(f"--data must be a folder that exists, not {options.data}")
    if data:
        check_reviews(data)  # before anything is started
    categories = "" if data or options.rows else options.categories  # "": not those of the target either
    if categories:
        try:
            category_addresses(categories, options.source)
        except DataError as e:
            raise SystemExit(f"--categories: {e}") from None
    reviews = {"data": data, "categories": categories}
    return of_training | reviews | {"idle_minutes": options.idle_minutes, "deploy_model": options.model}


FAILURES = (ValueError, LookupError, RuntimeError, ClientError, BotoCoreError, PapermillExecutionError, OSError)


def explain(error: Exception) -> str:
    "Say what went wrong and what to do, without the id of an account."
    if isinstance(error, NoCredentialsError | NoRegionError):
        return f"{error} Configure the AWS command line first (aws configure), or deploy to --target local."
    if isinstance(error, PapermillExecutionError):
        return mask_accounts(_explain_cell(error))
    return mask_accounts(cause(error) if isinstance(error, OSError) else str(error))


def _explain_cell(error: PapermillExecutionError) -> str:
    "Say which cell of which notebook failed and why."
    newest = max(RUNS.glob("*/"), key=lambda p: p.stat().st_mtime)
    return (
        f"\n{error.ename}: {with_cause(error.evalue)}\n"
        f"Cell {error.cell_index} failed; the whole story is in {newest.relative_to(ROOT)}/ (the last notebook there)."
        "\nWhat was done before it stands, and the next run goes on from here."
    )


@contextmanager
def tied_up(target: str) -> Iterator[None]:
    "If the work is cut off, in whatever way, see that nothing goes on being paid for unnoticed."
    try:
        yield
    except BaseException as e:
        tie_up(target, interrupted=isinstance(e, OSError) or not isinstance(e, FAILURES))
        raise


def _steps(options: argparse.Namespace) -> dict:
    "Say which notebooks are to run."
    return {"only": options.only, "start": options.start, "force": options.force}


def _to_local(options: argparse.Namespace) -> dict[str, str]:  # outputs
    "Deploy to the local cloud."
    parameters, chosen = chosen_parameters(options), chosen_environment(options)
    with local_cloud(start=False), tied_up("local"):
        os.environ.update(chosen)
        if options.model_data:
            return deploy_given("local", options.model_data, **parameters)
        return deploy("local", **_steps(options), **parameters)


def _to_aws(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, str]:  # outputs
    "Deploy to AWS as it was asked for, now and earlier, if nothing is in the way."
    enter(chosen_environment(options))
    given = bool(options.model_data)
    known = recall(options)
    check_options(parser, options)  # what was asked for earlier may not be there any more
    parameters = chosen_parameters(options) | {"idle_minutes": None}  # the environment says it
    if told := options.model_data:
        parameters |= {"deploy_model": "candidate", "model_data": told}
        given = given or not is_adopted(told)  # one that was given earlier is the newest already

    def ahead(asked: bool) -> list[str]:
        stamps = Stamps(connect("aws"), foundation_stack(settings_from(os.environ))).read() if asked else {}
        phases = plan(parameters_of("aws", parameters | places(options, asked)))
        return [phase.title for phase in upcoming(phases, stamps, **_steps(options), given=given)]

    before(options, parameters_of("aws", parameters)["training_instance"], known, ahead)
    if any(title.startswith("04") for title in ahead(True)):
        fetch_wheels()  # 04 packs them; if they cannot be had, that shows before anything is paid for
    parameters |= {"asked": asked_for(options)} | places(options)
    with tied_up("aws"):
        return deploy_given("aws", **parameters) if given else deploy("aws", **_steps(options), **parameters)


def stop_on_signals():
    "Let SIGTERM, which a cancelled workflow sends, end a program the way Ctrl-C does; in a shell's background too."
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


@tells_cause
def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--target", choices=("local", "aws"), default="local", help="the cloud to deploy to")
    add_account_options(parser)
    add_variant_options(parser)
    add_options(parser)
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--only", choices=PHASES, help="run this one notebook")
    steps.add_argument("--from", dest="start", choices=PHASES, help="run from this notebook on")
    steps.add_argument("--force", action="store_true", help="run every notebook, also those that are up to date")
    options = parser.parse_args()
    check_options(parser, options)
    stop_on_signals()
    try:
        outputs = _to_local(options) if options.target == "local" else _to_aws(parser, options)
    except FAILURES as e:
        raise SystemExit(explain(e)) from None
    except KeyboardInterrupt:
        raise SystemExit("\nInterrupted. What was done stands, and the next run goes on from here.") from None
    for name in ("SiteUrl", "ApiUrl"):
        if name in outputs:
            print(f"{name:8} {outputs[name]}")


if __name__ == "__main__":
    main()
