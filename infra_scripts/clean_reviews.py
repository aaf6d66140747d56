"""The script of the Glue job: cleans the raw reviews of the lake.

Arguments, each an s3:// address: --raw, --processed and --rejected (prefixes) and --report (one JSON file).
"""

import sys

from sentiment_engine.etl import clean_reviews, start_spark

PLACES = ("raw", "processed", "rejected", "report")


def main(argv: list[str]) -> None:
    "Clean what is in --raw. Any exception fails the run, and its message is the run's."
    from awsglue.utils import getResolvedOptions  # only Glue has it

    options = getResolvedOptions(argv, list(PLACES))
    report = clean_reviews(start_spark(), *(options[place].rstrip("/") for place in PLACES))
    print(f"kept {report['kept']:,} of {report['read']:,} reviews, rejected {report['rejected']}")


if __name__ == "__main__":
    main(sys.argv)
