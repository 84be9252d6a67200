"""Files in an S3 bucket: credentials, the boto3 client and the store's five verbs on ``s3://`` addresses."""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from intern_vision.address import (
    COMMITTED_NAME,
    StoredFile,
    check_deletable,
    check_digest,
    check_range,
    open_source,
    replacing,
    split_uri,
)
from intern_vision.errors import (
    AccessError,
    ConfigError,
    DataError,
    ForbiddenError,
    MissingObjectError,
    RetryableError,
)

PART_BYTES = 16 * 2**20
MAX_CONCURRENT_PARTS = 8
READ_ATTEMPTS = 3
KEYS_PER_DELETE = 1000  # limit of the S3 call DeleteObjects

_CREDENTIAL_VARIABLES = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_REFUSED_CODES = frozenset(
    (
        "401",
        "403",
        "AccessDenied",
        "AccountProblem",
        "AllAccessDisabled",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    )
)
_FORBIDDEN_CODES = frozenset(("403", "AccessDenied", "AllAccessDisabled"))
_REGION_CODES = frozenset(
    ("301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect")
)
_MISSING_CODES = frozenset(("404", "NoSuchKey", "NotFound"))


def configured_endpoint(environment: Mapping[str, str] = os.environ) -> str | None:
    """The S3 endpoint that the environment names, or None where it names none.

    ``INTERN_S3_ENDPOINT`` comes before ``AWS_ENDPOINT_URL_S3``; the word ``aws`` stands for Amazon's own service.
    """
    return environment.get("INTERN_S3_ENDPOINT") or environment.get("AWS_ENDPOINT_URL_S3") or None


@dataclass(frozen=True)
class S3Access:
    """An S3 server and, where they do not come from the standard AWS chain, its credentials.

    Attributes:
        endpoint: ``http(s)://host:port``; empty for Amazon's own service.
        region: region name that signatures carry; empty lets the AWS chain decide.
        access_key, secret_key: credentials; empty for the AWS chain (environment, mounted
            files, instance role). They are not shown by ``repr``.
    """

    endpoint: str
    region: str = ""
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)

    @classmethod
    def from_environment(cls) -> "S3Access":
        """Access as the environment states it; credentials are left to the AWS chain.

        Raises:
            ConfigError: the endpoint is not an ``http(s)://`` address.
        """
        endpoint = configured_endpoint() or ""
        if endpoint == "aws":
            endpoint = ""
        elif endpoint and (urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname):
            raise ConfigError(f"INTERN_S3_ENDPOINT: expected http(s)://host:port or aws, got {endpoint!r}")
        region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION") or ""
        return cls(endpoint, region or ("us-east-1" if endpoint else ""))

    @property
    def name(self) -> str:
        """The endpoint as messages show it."""
        return self.endpoint or "Amazon S3"

    def session(self) -> Any:
        """A boto3 session with these credentials."""
        import boto3

        return boto3.Session(
            aws_access_key_id=self.access_key or None,
            aws_secret_access_key=self.secret_key or None,
            region_name=self.region or None,
        )

    def client(self) -> Any:
        """The boto3 S3 client: signature v4, path style, retries with back-off; one for a process and access.

        Threads share it; a forked process makes its own, since sockets must not be shared.
        """
        watched = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_MAX_ATTEMPTS")
        settings = tuple(getattr(self, item.name) for item in fields(self))
        key = (os.getpid(), *settings, *(os.environ.get(name) for name in watched))
        with _CLIENTS_LOCK:
            if key not in _CLIENTS:
                _CLIENTS[key] = self._new_client()
            return _CLIENTS[key]

    def _new_client(self) -> Any:
        from botocore.config import Config as ClientConfig

        attempts = os.environ.get("AWS_MAX_ATTEMPTS", "5")
        if not attempts.isdigit() or int(attempts) < 1:
            raise ConfigError(f"AWS_MAX_ATTEMPTS: expected a whole number >= 1, got {attempts!r}")
        with s3_errors("", self):
            return self.session().client(
                "s3",
                endpoint_url=self.endpoint or None,
                config=ClientConfig(
                    signature_version="s3v4",
                    s3={"addressing_style": "path" if self.endpoint else "auto"},
                    retries={"mode": "standard", "total_max_attempts": int(attempts)},
                    connect_timeout=3,
                    read_timeout=30,
                    max_pool_connections=2 * MAX_CONCURRENT_PARTS,
                ),
            )


_CLIENTS: dict[tuple[Any, ...], Any] = {}
_CLIENTS_LOCK = threading.Lock()


class S3Store:
    """``Store`` over one S3 server; see ``intern_vision.store.Store`` for what the verbs promise.

    Args:
        root_uri: the address below which ``delete`` may work.
        access: server and credentials; by default what the environment states at first use.
    """

    def __init__(self, root_uri: str, access: S3Access | None = None):
        """Checks the address; nothing is sent before the first verb."""
        split_uri(root_uri)
        self.root_uri = root_uri
        self._access = access

    @property
    def access(self) -> S3Access:
        """Server and credentials in use."""
        return self._access or S3Access.from_environment()

    def put(self, source: Path | bytes, uri: str) -> None:
        """Writes bytes or a local file; concurrent parts from 16 MiB on, visible only when complete."""
        bucket, key = _bucket_and_key(uri)
        access = self.access
        with s3_errors(uri, access):
            if isinstance(source, bytes):
                access.client().put_object(Bucket=bucket, Key=key, Body=source)
                return
            with open_source(source) as file:
                access.client().upload_fileobj(file, bucket, key, Config=_transfer_config())

    def get(self, uri: str, target: Path, *, sha256: str | None = None) -> None:
        """Downloads to a temporary file beside ``target``, checks the digest, then renames."""
        bucket, key = _bucket_and_key(uri)
        access = self.access
        with s3_errors(uri, access):
            num_bytes = access.client().head_object(Bucket=bucket, Key=key)["ContentLength"]
            with replacing(target, num_bytes) as part:
                with open(part, "wb") as file:
                    access.client().download_fileobj(bucket, key, file, Config=_transfer_config())
                if sha256 is not None:
                    check_digest(part, uri, sha256)

    def read(self, uri: str, start: int = 0, num_bytes: int | None = None) -> bytes:
        """A range of the object's bytes; a stream that breaks off is read again."""
        from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

        check_range(start, num_bytes)
        bucket, key = _bucket_and_key(uri)
        access = self.access
        with s3_errors(uri, access):
            if num_bytes == 0:
                access.client().head_object(Bucket=bucket, Key=key)
                return b""
            last = "" if num_bytes is None else start + num_bytes - 1
            extra = {} if start == 0 and num_bytes is None else {"Range": f"bytes={start}-{last}"}
            for attempt in range(READ_ATTEMPTS):
                try:
                    return access.client().get_object(Bucket=bucket, Key=key, **extra)["Body"].read()
                except ClientError as error:
                    if error.response["Error"]["Code"] in ("InvalidRange", "416"):
                        return b""
                    raise
                except (HTTPClientError, IncompleteReadError):
                    if attempt == READ_ATTEMPTS - 1:
                        raise
        raise AssertionError("unreachable: the loop returns or raises")

    def list(self, prefix: str) -> list[StoredFile]:
        """Every object below ``prefix``, sorted by address."""
        _, bucket, key = split_uri(prefix)
        access = self.access
        found = []
        with s3_errors(prefix, access):
            pages = access.client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=bucket, Prefix=f"{key}/" if key else ""):
                found += [
                    StoredFile(f"s3://{bucket}/{item['Key']}", item["Size"], item["LastModified"].timestamp())
                    for item in page.get("Contents", ())
                ]
        return sorted(found)

    def delete(self, prefix: str) -> None:
        """Removes the object at ``prefix`` and all below it, the ``_COMMITTED`` markers first."""
        check_deletable(self.root_uri, prefix)
        _, bucket, key = split_uri(prefix)
        access = self.access
        keys = [key, *(split_uri(item.uri)[2] for item in self.list(prefix))]
        keys.sort(key=lambda name: name.rpartition("/")[2] != COMMITTED_NAME)
        with s3_errors(prefix, access):
            for first in range(0, len(keys), KEYS_PER_DELETE):
                batch = [{"Key": name} for name in keys[first : first + KEYS_PER_DELETE]]
                answer = access.client().delete_objects(Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
                for fault in answer.get("Errors", ()):
                    if fault["Code"] in _MISSING_CODES:
                        continue
                    kind = AccessError if fault["Code"] in _REFUSED_CODES else RetryableError
                    raise kind(f"s3://{bucket}/{fault['Key']}: {access.name} did not delete it ({fault['Code']})")


def ensure_bucket(name: str, access: S3Access | None = None) -> None:
    """Makes the bucket unless it exists.

    Raises:
        AccessError: the credentials may not see or make it.
        ConfigError: the name is not allowed.
        RetryableError: the server does not answer.
    """
    import minio
    import urllib3
    from minio.error import MinioException, S3Error

    access = access or S3Access.from_environment()
    with s3_errors(f"s3://{name}", access):
        credentials = access.session().get_credentials()
        if credentials is None:
            raise AccessError(f"{access.name}: no credentials; set {_CREDENTIAL_VARIABLES}")
        frozen = credentials.get_frozen_credentials()
    url = urlsplit(access.endpoint or "https://s3.amazonaws.com")
    authority = os.environ.get("AWS_CA_BUNDLE")
    client = minio.Minio(
        url.netloc,
        access_key=frozen.access_key,
        secret_key=frozen.secret_key,
        session_token=frozen.token,
        secure=url.scheme == "https",
        region=access.region or None,
        http_client=urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=3, read=30),
            retries=urllib3.Retry(total=3, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504)),
            **({"ca_certs": authority} if authority else {}),
        ),
    )
    try:
        if not client.bucket_exists(name):
            client.make_bucket(name)
    except S3Error as error:
        if error.code in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            return  # another process made it between the two calls
        if error.code in _REFUSED_CODES:
            raise _refused(f"s3://{name}", access, error.code) from None
        region = error.response.headers.get("x-amz-bucket-region")
        if error.code in _REGION_CODES or (region and region != access.region):
            raise _other_region(f"s3://{name}", access, region) from None
        raise ConfigError(f"s3://{name}: {access.name} did not make the bucket ({error.code}); rename it") from None
    except ValueError as error:
        raise ConfigError(f"s3://{name}: {error}; use 3 to 63 lower-case letters, digits and hyphens") from None
    except (urllib3.exceptions.HTTPError, MinioException) as error:
        raise _unreachable(f"s3://{name}", access, error) from None


@contextmanager
def s3_errors(uri: str, access: S3Access) -> Iterator[None]:
    """Turns what boto3 raises into the errors of this package; ``uri`` is what was being read or written."""
    from botocore import exceptions

    at = f"{uri}: " if uri else ""
    try:
        yield
    except exceptions.ClientError as error:
        raise _from_answer(error, uri, access) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.ProfileNotFound) as error:
        text = str(error).rstrip(".")
        raise AccessError(f"{at}{access.name}: {text}; set {_CREDENTIAL_VARIABLES}") from None
    except exceptions.SSLError:
        raise ConfigError(f"{at}{access.name}: its certificate is not trusted; name its CA in AWS_CA_BUNDLE") from None
    except (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError) as error:
        raise _unreachable(uri, access, error) from None
    except exceptions.BotoCoreError as error:
        raise DataError(f"{at}{access.name}: {error}") from None


def _from_answer(error: Any, uri: str, access: S3Access) -> Exception:
    code = error.response["Error"].get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    bucket = split_uri(uri)[1]
    if code in _MISSING_CODES and not _bucket_exists(bucket, access):
        code = "NoSuchBucket"
    if code == "NoSuchBucket":
        return DataError(f"{uri}: {access.name} has no bucket {bucket!r}; create it or correct the address")
    if code in _MISSING_CODES:
        return MissingObjectError(f"{uri}: no object lies there; check the address or run the step that writes it")
    if code in _REGION_CODES:
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return _other_region(uri, access, error.response["Error"].get("Region") or headers.get("x-amz-bucket-region"))
    if code in _REFUSED_CODES or status in (401, 403):
        return _refused(uri, access, code)
    if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout"):
        return RetryableError(f"{uri}: {access.name} is overloaded or full ({code}); run the same command again")
    return DataError(f"{uri}: {access.name} refused the request ({code}: {error.response['Error'].get('Message', '')})")


def _bucket_exists(bucket: str, access: S3Access) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        access.client().head_bucket(Bucket=bucket)
    except ClientError as error:
        return error.response["Error"].get("Code") not in (*_MISSING_CODES, "NoSuchBucket")
    except BotoCoreError:
        return True
    return True


def _refused(uri: str, access: S3Access, code: str) -> AccessError:
    kind = ForbiddenError if code in _FORBIDDEN_CODES else AccessError
    return kind(f"{uri}: {access.name} refused the credentials ({code}); check {_CREDENTIAL_VARIABLES}")


def _other_region(uri: str, access: S3Access, region: str | None) -> ConfigError:
    where = f"region {region}" if region else "another region"
    return ConfigError(
        f"{uri}: its bucket is in {where}, not in {access.region or 'none'}; "
        "correct AWS_DEFAULT_REGION (objectStore.region in the chart)"
    )


def _unreachable(uri: str, access: S3Access, error: Exception) -> RetryableError:
    at = f"{uri}: " if uri else ""
    return RetryableError(
        f"{at}no answer from {access.name} ({type(error).__name__}); start it or correct INTERN_S3_ENDPOINT, "
        "then run the same command again"
    )


def _bucket_and_key(uri: str) -> tuple[str, str]:
    scheme, bucket, key = split_uri(uri)
    if scheme != "s3" or not key:
        raise ConfigError(f"{uri!r}: expected s3://bucket/key")
    return bucket, key


def _transfer_config() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=MAX_CONCURRENT_PARTS
    )
