"""The bucket of an S3-compatible store, made unless it is there: `python -m flows.servers.bucket s3://align`."""

from __future__ import annotations

import os
import sys
from urllib.parse import urlsplit

from artifacts.errors import UserError


def make_bucket(address: str) -> bool:
    """Whether it had to be made; the store and its account are those of MLflow's and AWS's own variables."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    where = urlsplit(address)
    if where.scheme != "s3" or not where.netloc:
        raise UserError(f"wanted an address such as s3://align, got {address!r}")
    endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None
    try:
        store = boto3.client("s3", endpoint_url=endpoint)
        if where.netloc in {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}:
            return False
        store.create_bucket(Bucket=where.netloc)
    except (BotoCoreError, ClientError) as error:
        raise UserError(f"{address} at {endpoint or 'AWS'}: {error}") from error
    return True


def main(words: list[str]) -> int:
    if len(words) != 1:
        print("usage: python -m flows.servers.bucket s3://NAME", file=sys.stderr)
        return 2
    try:
        print(f"{words[0]} {'made' if make_bucket(words[0]) else 'is there'}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
