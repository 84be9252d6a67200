"""Whether nodes can pull an image, asked of its registry (OCI distribution API) as a node asks."""

import re
from typing import Any
from urllib.parse import urlsplit

from intern_vision.errors import AccessError, ConfigError, RetryableError

TIMEOUT_S = 10.0
_MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"
)
_REFERENCE = re.compile(r"(?P<name>[a-z0-9./:_-]+?)(:(?P<tag>[\w][\w.-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?")
_LOOPBACK = ("localhost", "127.0.0.1")


def digest_of(image: str) -> str:
    """The digest behind an image's name, as its registry has it now.

    Credentials are those of ``docker login`` on this machine, if there are any.

    Args:
        image: ``REGISTRY/NAME:TAG`` or ``REGISTRY/NAME@sha256:...``.

    Raises:
        ConfigError: it is no such name, names no registry, or the registry does not have it.
        AccessError: the registry wants a login, or another one.
        RetryableError: no answer.
    """
    import requests

    match = _REFERENCE.fullmatch(image)
    if not match or "//" in image:
        raise ConfigError(f"--image: expected REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:..., got {image!r}")
    registry, _, path = match["name"].partition("/")
    if not path or not ("." in registry or ":" in registry or registry == "localhost"):
        raise ConfigError(
            f"--image: {image} names no registry, so nodes would ask docker.io for it; push it to one they reach and "
            "name it with that (on kind, kind load docker-image instead)"
        )
    scheme = "http" if registry.partition(":")[0] in _LOOPBACK else "https"
    url = f"{scheme}://{registry}/v2/{path}/manifests/{match['digest'] or match['tag'] or 'latest'}"
    try:
        answer = requests.get(url, headers={"Accept": _MANIFEST_TYPES}, timeout=TIMEOUT_S)
        if answer.status_code == 401:
            login = _authorization(registry, answer.headers.get("WWW-Authenticate", ""))
            answer = requests.get(url, headers={"Accept": _MANIFEST_TYPES} | login, timeout=TIMEOUT_S)
    except requests.RequestException as error:
        raise RetryableError(f"{image}: no answer from its registry {registry} ({type(error).__name__})") from None
    if answer.status_code in (401, 403):
        raise AccessError(f"{image}: its registry {registry} refuses the login of this machine ({answer.status_code})")
    if answer.status_code == 404:
        raise ConfigError(f"{image}: its registry {registry} does not have it")
    if answer.status_code != 200:
        raise RetryableError(f"{image}: its registry {registry} answers {answer.status_code}")
    return answer.headers.get("Docker-Content-Digest") or match["digest"] or _sha256(answer.content)


def _authorization(registry: str, challenge: str) -> dict[str, str]:
    """The header that answers a registry's challenge; a token is asked for where it wants one."""
    import requests

    login = _login(registry)
    if challenge.lower().startswith("basic"):
        return {"Authorization": requests.auth._basic_auth_str(*login)} if login else {}
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = fields.pop("realm", "")
    address = urlsplit(realm)
    if address.scheme != "https" and address.hostname not in _LOOPBACK:
        return {}  # a login would go out unencrypted
    answer = requests.get(realm, params=fields, auth=login, timeout=TIMEOUT_S)
    if answer.status_code != 200:
        return {}
    token: dict[str, Any] = answer.json()
    return {"Authorization": f"Bearer {token.get('token') or token.get('access_token', '')}"}


def _login(registry: str) -> tuple[str, str] | None:
    from docker import auth

    found = auth.load_config().resolve_authconfig(registry) or {}
    return (found["username"], found["password"]) if found.get("username") else None


def _sha256(content: bytes) -> str:
    import hashlib

    return f"sha256:{hashlib.sha256(content).hexdigest()}"
