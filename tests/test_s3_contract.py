import os
import time

import pytest

from intern_vision.s3 import S3Access, S3Store
from intern_vision.s3_contract import contract


@pytest.fixture
def lenient(monkeypatch):
    """moto's server: it keeps no secret and checks no checksum, as some small S3 servers do not."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    access = S3Access(f"http://{host}:{port}", "us-east-1", "key", "secret")
    access.client().create_bucket(Bucket="bucket")
    yield access
    server.stop()


def test_the_embedded_store_keeps_the_whole_contract(s3):
    begun = time.monotonic()
    found = contract(S3Store(s3.store_uri, s3.access), f"{s3.store_uri}/contract", "mend it")
    assert time.monotonic() - begun < 20.0
    assert {check.name: check.ok for check in found} == dict.fromkeys(
        ("s3", "s3 region", "s3 multipart", "s3 checksums", "s3 conditional writes", "s3 credentials"), True
    )
    details = {check.name: check.detail for check in found}
    assert details["s3 checksums"] == "a wrong checksum is refused"
    assert details["s3 conditional writes"] == "only one of several writers wins"
    assert details["s3 credentials"] == "a wrong secret key is refused"
    assert S3Store(s3.store_uri, s3.access).list(f"{s3.store_uri}/contract") == [], "it cleans up"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in repr(found)


def test_a_server_that_checks_nothing_is_told_from_one_that_does(lenient):
    found = {each.name: each for each in contract(S3Store("s3://bucket/a", lenient), "s3://bucket/a/b", "mend it")}
    assert found["s3 multipart"].ok and found["s3 conditional writes"].ok
    assert found["s3 checksums"].ok and "a wrong one too" in found["s3 checksums"].detail
    credentials = found["s3 credentials"]
    assert not credentials.ok and "takes a write that is signed with a wrong secret key" in credentials.detail
    assert "authentication" in credentials.fix


def test_a_store_that_is_away_gives_one_fault(monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    access = S3Access("http://127.0.0.1:9", "us-east-1", "key", "secret")
    (fault,) = contract(S3Store("s3://bucket/a", access), "s3://bucket/a/b", "start it")
    assert not fault.ok and "no answer from http://127.0.0.1:9" in fault.detail and fault.fix == "start it"
