"""The script of the Glue job: clean the raw reviews of the lake.

Arguments, each an s3:// address: --raw, --processed and --rejected (prefixes) and --report (one JSON file).
Optional: --drift, how far the stars may move, and each rule by its name, such as --balance 2.
"""

import sys
from dataclasses import fields

from sentiment_engine.data.etl import Rules, clean_reviews, rules_from
from sentiment_engine.data.quality import Expectations

PLACES = ("raw", "processed", "rejected", "report")
CHOICES = ("drift", *(rule.name for rule in fields(Rules)))


def main(argv: list[str]) -> None:
    "Clean what is in --raw. Any exception fails the run and becomes its error message."
    from awsglue.context import GlueContext  # only Glue has this package
    from awsglue.job import Job
    from awsglue.utils import getResolvedOptions
    from pyspark import SparkContext

    given = {word[2:].partition("=")[0] for word in argv[1:] if word.startswith("--")}
    options = getResolvedOptions(argv, ["JOB_NAME", *PLACES, *(name for name in CHOICES if name in given)])
    rules, expected = rules_from(options), Expectations(drift=float(options.get("drift", Expectations.drift)))
    glue = GlueContext(SparkContext.getOrCreate())
    job = Job(glue)
    job.init(options["JOB_NAME"], options)
    places = {place: options[place].rstrip("/") for place in PLACES}
    report = clean_reviews(glue.spark_session, **places, rules=rules, expected=expected)
    job.commit()
    print(f"kept {report['kept']:,} of {report['read']:,} reviews, rejected {report['rejected']}")
    if report["not_read"]:
        print(f"not read: {', '.join(report['not_read'])}")


if __name__ == "__main__":
    main(sys.argv)
