"""Deploy the engine to the local cloud or to AWS: run the numbered notebooks that are not up to date.

The notebooks run in order. nbs/deploy/phases.ipynb explains how a deployment decides which ones are up to date.
"""

from sentiment_engine.causes import tells_cause
from sentiment_engine.commands import Parser
from sentiment_engine.deploy.phases import (
    FAILURES,
    PHASES,
    add_options,
    deploy_locally,
    deploy_to_aws,
    explain_failure,
    stop_on_signals,
)
from sentiment_engine.deploy.target import add_account_options, add_variant_options, check_options


@tells_cause
def main():
    parser = Parser(description=__doc__)
    parser.add_argument("--target", choices=("local", "aws"), default="local", help="the cloud to deploy to")
    add_account_options(parser)
    add_variant_options(parser)
    add_options(parser)
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--only", choices=PHASES, help="run only this notebook")
    steps.add_argument("--from", dest="start", choices=PHASES, help="run this notebook and the later ones")
    steps.add_argument("--force", action="store_true", help="run every notebook, even unchanged ones")
    options = parser.parse_args()
    check_options(parser, options)
    stop_on_signals()
    try:
        outputs = deploy_locally(options) if options.target == "local" else deploy_to_aws(parser, options)
    except FAILURES as e:
        raise SystemExit(explain_failure(e)) from None
    except KeyboardInterrupt:
        raise SystemExit("\nInterrupted. Completed phases are kept, and the next run continues from here.") from None
    for name in ("SiteUrl", "ApiUrl"):
        if name in outputs:
            print(f"{name:8} {outputs[name]}")


if __name__ == "__main__":
    main()
