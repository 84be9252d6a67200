"""What an S3 server really does, found out in seconds: parts, checksums, conditional writes, signatures, region.

Servers differ in what they quietly leave out. What this package needs is a fault where it is missing; what it can do
without is only told.
"""

import base64
import hashlib
import secrets
import threading
from collections.abc import Callable

from intern_vision.address import split_uri
from intern_vision.doctor import Check, store_check, tried
from intern_vision.errors import AccessError, ConfigError, InternError
from intern_vision.s3 import S3Access, S3Store, s3_errors

LIMIT_S = 20.0
FIRST_PART_BYTES = 5 * 2**20  # the least that S3 takes for a part that is not the last one
_REFUSALS = (400, 409, 412, 501)
_SERVER_SETTING = "give the server this ability, or use another S3 server"


def contract(store: S3Store, uri: str, fix: str, limit_s: float = LIMIT_S) -> list[Check]:
    """Uses a store as trainings do; what it writes is removed.

    Args:
        store: with the credentials of the steps.
        uri: an address below its root where nothing lies.
        fix: what to do where it cannot be reached at all.
        limit_s: after this time what has been found so far is returned, with a fault for the rest.
    """
    found: list[Check] = []
    worker = threading.Thread(target=_look, args=(_Looker(store, uri), fix, found), daemon=True)
    worker.start()
    worker.join(limit_s)
    if worker.is_alive():
        detail = f"{store.access.name} took longer than {limit_s:g} s"
        return [*found, Check("s3 speed", False, detail, "look at the server's load and the network")]
    return found


def _look(looker: "_Looker", fix: str, found: list[Check]) -> None:
    found.append(store_check(looker.store, f"{looker.uri}/object", looker.store.access.name, fix))
    if not found[0].ok:
        return
    checks: tuple[tuple[str, Callable[[], str], str], ...] = (
        ("s3 region", looker.region, "set objectStore.region, or AWS_DEFAULT_REGION, to the bucket's"),
        ("s3 multipart", looker.multipart, _SERVER_SETTING),
        ("s3 checksums", looker.checksums, "set objectStore.checksums to when_required"),
        ("s3 conditional writes", looker.conditional_writes, _SERVER_SETTING),
        ("s3 credentials", looker.credentials, "switch the server's authentication on: anybody can read and write"),
    )
    try:
        for name, action, help_text in checks:
            found.append(tried(name, action, help_text))
            if name == "s3 region" and not found[-1].ok:
                break  # the rest would be measured through another region
    finally:
        looker.clean()


class _Looker:
    """The parts of the contract; each method returns what it found and raises where it will not do."""

    def __init__(self, store: S3Store, uri: str) -> None:
        self.store, self.uri = store, uri
        self.access = store.access
        _, self.bucket, self.prefix = split_uri(uri)

    def region(self) -> str:
        """The bucket lies where signatures say; Amazon forwards others, which is slow and costs."""
        with s3_errors(self.uri, self.access):
            answer = self.access.client().head_bucket(Bucket=self.bucket)
        region = answer.get("BucketRegion") or answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
        if region and self.access.region and region != self.access.region:
            raise ConfigError(f"bucket {self.bucket} is in region {region}, not in {self.access.region}")
        return region or "the server names none"

    def multipart(self) -> str:
        """Two parts make one object, and a part of it can be read across their border."""
        client, key = self.access.client(), f"{self.prefix}/parts"
        first, second = secrets.token_bytes(FIRST_PART_BYTES), secrets.token_bytes(1024)
        with s3_errors(f"{self.uri}/parts", self.access):
            upload = client.create_multipart_upload(Bucket=self.bucket, Key=key)["UploadId"]
            where = {"Bucket": self.bucket, "Key": key, "UploadId": upload}
            try:
                tags = [
                    {"PartNumber": number, "ETag": client.upload_part(PartNumber=number, Body=body, **where)["ETag"]}
                    for number, body in ((1, first), (2, second))
                ]
                client.complete_multipart_upload(MultipartUpload={"Parts": tags}, **where)
            except Exception:
                client.abort_multipart_upload(**where)
                raise
        found = self.store.read(f"{self.uri}/parts", FIRST_PART_BYTES - 512, 1024)
        if found != first[-512:] + second[:512]:
            raise InternError(f"{self.uri}/parts: read other bytes than were written in parts")
        return f"two parts of {len(first) + len(second):,} bytes together, read across their border"

    def checksums(self) -> str:
        """A right checksum is taken; a wrong one should be refused, but files carry digests of their own."""
        body = secrets.token_bytes(1024)
        if self._is_refused("sum", body, ChecksumSHA256=_sha256(body)):
            raise InternError(f"{self.uri}/sum: {self.access.name} refuses a right SHA-256 checksum")
        if self._is_refused("sum", body, ChecksumSHA256=_sha256(b"other")):
            return "a wrong checksum is refused"
        return "taken, a wrong one too; files are compared with their own digests when they are read"

    def conditional_writes(self) -> str:
        """``If-None-Match`` and ``If-Match`` are kept; nothing here relies on them."""
        self._is_refused("once", b"first")
        create = self._is_refused("once", b"second", IfNoneMatch="*")
        replace = self._is_refused("once", b"third", IfMatch='"0123456789abcdef0123456789abcdef"')
        if create and replace:
            return "only one of several writers wins"
        missing = [name for name, kept in (("If-None-Match", create), ("If-Match", replace)) if not kept]
        return f"without {' and '.join(missing)}; not needed, equal keys hold equal content"

    def credentials(self) -> str:
        """A signature with another secret is refused."""
        found = self.access.session().get_credentials()
        if found is None or found.token or not found.secret_key:
            return "of a role, which changes them by itself"
        wrong = S3Access(self.access.endpoint, self.access.region, found.access_key, secrets.token_hex(20))
        try:
            S3Store(self.store.root_uri, wrong).put(b"", f"{self.uri}/wrong")
        except AccessError:
            return "a wrong secret key is refused"
        raise InternError(f"{self.access.name} takes a write that is signed with a wrong secret key")

    def clean(self) -> None:
        """Removes what was written; a fault of this was told by the first check."""
        tried("", lambda: str(self.store.delete(self.uri)), "")

    def _is_refused(self, name: str, body: bytes, **conditions: str) -> bool:
        """Writes an object; whether the server answers that a condition does not hold or is unknown to it."""
        from botocore.exceptions import ClientError

        uri = f"{self.uri}/{name}"
        with s3_errors(uri, self.access):
            try:
                self.access.client().put_object(
                    Bucket=self.bucket, Key=f"{self.prefix}/{name}", Body=body, **conditions
                )
            except ClientError as error:
                if not conditions or error.response["ResponseMetadata"]["HTTPStatusCode"] not in _REFUSALS:
                    raise
                return True
        return False


def _sha256(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()
