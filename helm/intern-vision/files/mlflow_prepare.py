"""Brings MLflow's databases up to date, makes its bucket and writes its login settings; an init container.

Everything comes from the environment, so that no secret is in an argument. Several pods may start at once: on
Postgres one holds an advisory lock while it migrates, and the others then find nothing to do.
"""

import configparser
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_KEY = 0x494E5445  # any number that no other program locks


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One pod at a time, where the database can say so; an SQLite file has one pod anyway."""
    import sqlalchemy

    if not uri.startswith("postgresql"):
        yield
        return
    engine = sqlalchemy.create_engine(uri)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": LOCK_KEY})
        yield  # closing the connection gives the lock back
    engine.dispose()


def _migrate(uri: str, auth_uri: str) -> None:
    from mlflow.db import upgrade

    with _alone(uri):
        upgrade.callback(uri)
        if auth_uri:
            from mlflow.server.auth.db.cli import upgrade as upgrade_auth

            upgrade_auth.callback(auth_uri, "head")


def _write_auth_config(path: Path, auth_uri: str) -> None:
    config = configparser.ConfigParser(interpolation=None)
    config["mlflow"] = {
        "default_permission": os.environ["AUTH_DEFAULT_PERMISSION"],
        "database_uri": auth_uri.replace("%", "%%"),  # MLflow reads it with interpolation
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        config.write(file)


def _make_bucket(bucket: str) -> None:
    import boto3
    from botocore.exceptions import ClientError

    client = boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL"))
    region = client.meta.region_name
    location = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise
        try:
            client.create_bucket(Bucket=bucket, **location)
        except ClientError as made:
            if made.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise


def main() -> int:
    """Does what the environment asks for; on a fault prints one line, without any address that holds a password."""
    uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
    auth_uri = os.environ.get("AUTH_DATABASE_URI", "")
    steps = {
        "writing the login settings": lambda: (
            _write_auth_config(Path(os.environ["MLFLOW_AUTH_CONFIG_PATH"]), auth_uri) if auth_uri else None
        ),
        "making the bucket": lambda: _make_bucket(os.environ["BUCKET"]) if os.environ.get("BUCKET") else None,
        "migrating the databases": lambda: _migrate(uri, auth_uri) if os.environ.get("MIGRATE") else None,
    }
    for what, step in steps.items():
        try:
            step()
        except Exception as error:
            text = " ".join(str(error).split()).replace(uri, "***")
            text = text.replace(auth_uri, "***") if auth_uri else text
            print(f"mlflow: {what} failed: {type(error).__name__}: {text[:300]}", file=sys.stderr)
            return 75
        print(f"mlflow: {what}: done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
