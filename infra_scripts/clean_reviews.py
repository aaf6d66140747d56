"""The script of the Glue job: cleans the raw reviews of the lake.

Arguments, each an s3:// address: --raw, --processed and --rejected (prefixes) and --report (one JSON file).
May be left out: --drift, how far the stars may move, and the rules, each by its name, as --balance 2.
"""

import sys
from dataclasses import fields

from sentiment_engine.etl import Rules, clean_reviews, rules_from, start_spark
from sentiment_engine.quality import Expectations

PLACES = ("raw", "processed", "rejected", "report")
CHOICES = ("drift", *(rule.name for rule in fields(Rules)))


def main(argv: list[str]) -> None:
    "Clean what is in --raw. Any exception fails the run, and its message is the run's."
    from awsglue.utils import getResolvedOptions  # only Glue has it

    given = {word.partition("=")[0].removeprefix("--") for word in argv[1:]}
    options = getResolvedOptions(argv, [*PLACES, *(name for name in CHOICES if name in given)])
    expected = Expectations(drift=float(options.get("drift", Expectations.drift)))
    places = [options[place].rstrip("/") for place in PLACES]
    report = clean_reviews(start_spark(), *places, rules_from(options), expected)
    print(f"kept {report['kept']:,} of {report['read']:,} reviews, rejected {report['rejected']}")


if __name__ == "__main__":
    main(sys.argv)
