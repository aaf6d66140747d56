"""Delete everything that deployments created, endpoints first, and list what is kept and why; safe to repeat.

Only resources of this engine are deleted: nbs/deploy/teardown.ipynb explains how they are recognized.
"""

import os
import sys

from botocore.exceptions import BotoCoreError, ClientError

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser
from sentiment_engine.deploy.account import mask_accounts
from sentiment_engine.deploy.loose_ends import tell
from sentiment_engine.deploy.phases import FAILURES, add_ports, explain_failure, local_cloud, stop_on_signals
from sentiment_engine.deploy.target import add_account_options, check_options, chosen_environment, enter, whose
from sentiment_engine.deploy.teardown import teardown
from sentiment_engine.settings import settings_from


def _typed(question: str) -> str:
    "Ask a question. No answer counts as no."
    try:
        return input(question)
    except (EOFError, KeyboardInterrupt):
        return ""


def _make_sure(yes: bool):  # yes: without a question
    "Show what will be deleted in which account. Ends the program unless the user confirms."
    prefix = settings_from(os.environ).prefix
    try:
        tell(f"This deletes everything of the engine {prefix!r}, including its reviews and models, as {whose()}.")
    except (ValueError, ClientError, BotoCoreError) as e:
        sys.exit(f"nothing was deleted: {mask_accounts(str(e))}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Nothing was deleted.")
    if not yes and _typed("Type the prefix to continue: ") != prefix:
        sys.exit("nothing was deleted")


@tells_cause
def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--target", choices=("local", "aws"), default="local", help="the cloud to delete from")
    add_account_options(parser)
    add_ports(parser)
    parser.add_argument("--yes", action="store_true", help="delete from AWS without asking")
    options = parser.parse_args()
    check_options(parser, options)
    stop_on_signals()
    try:
        chosen = chosen_environment(options)
    except ValueError as e:
        sys.exit(str(e))
    enter(chosen)
    if options.target == "aws":
        _make_sure(options.yes)
    try:
        if options.target == "local":
            with local_cloud(ports=options):
                os.environ.update(chosen)
                deleted = teardown("local")
        else:
            deleted = teardown("aws")
    except ValueError as e:
        sys.exit(str(e))
    except FAILURES as e:
        sys.exit(f"{explain_failure(e)}\nRun the command again to delete the rest.")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Run the command again to delete the rest.")
    tell(f"{len(deleted)} resources deleted." if deleted else "Nothing is left to delete.")


if __name__ == "__main__":
    main()
