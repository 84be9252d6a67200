#!/bin/sh
# Makes the images' base, python:3.11-slim-bookworm, from Debian's packages, for machines that reach a Debian mirror
# and a Python package index but no image registry. With a registry nothing of this is needed.
#
#   apt-get install -y --no-install-recommends docker.io mmdebstrap
#   docker/base_image.sh
#
# Environment:
#   IMAGE      name of the result                                (python:3.11-slim-bookworm)
#   DOCKER     the client's program                              (docker)
#   MIRROR     Debian mirror                                     (the first of this machine's sources, else deb.debian.org)
#   PYTHON     a Python whose pip reaches the index              (python3)
#   CA_BUNDLE  certificates to trust inside, where the network has authorities of its own  (this machine's)
#   WHEELS     folder of wheels that the index has not; it becomes the image wheels:local  (none)
set -eu

IMAGE=${IMAGE:-python:3.11-slim-bookworm}
DOCKER=${DOCKER:-docker}
PYTHON=${PYTHON:-python3}
CA_BUNDLE=${CA_BUNDLE:-/etc/ssl/certs/ca-certificates.crt}
found=$(sed -n -e 's/^URIs: *\([^ ]*\).*/\1/p' -e 's/^deb *\(\[[^]]*\] *\)\{0,1\}\([^ ]*\).*/\2/p' \
  /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1)
MIRROR=${MIRROR:-${found:-http://deb.debian.org/debian}}

fail() { echo "base_image.sh: $1" >&2; exit 2; }
command -v mmdebstrap >/dev/null || fail 'mmdebstrap is missing; apt-get install -y --no-install-recommends mmdebstrap'
"$DOCKER" version >/dev/null 2>&1 || fail "no Docker daemon answers $DOCKER; start dockerd, or set DOCKER"
[ -r "$CA_BUNDLE" ] || fail "CA_BUNDLE: no such file: $CA_BUNDLE"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/wheels"
"$PYTHON" -m pip download --quiet --no-deps --dest "$folder/wheels" pip setuptools

# Debian's Python, made to behave as the official image's: `python` and `pip` on PATH, pip may install. The authorities
# are part of the image, and named to pip and to Python, which do not look where Debian keeps them.
site=usr/local/lib/python3.11/dist-packages
mmdebstrap --quiet --variant=minbase \
  --include=ca-certificates,libpython3.11-stdlib,netbase,python3-distutils,python3.11-minimal,tzdata \
  --dpkgopt='force-unsafe-io' \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --customize-hook='ln -sf python3.11 "$1/usr/bin/python3"; ln -sf python3.11 "$1/usr/bin/python"' \
  --customize-hook='rm -f "$1/usr/lib/python3.11/EXTERNALLY-MANAGED"; mkdir -p "$1/'"$site"'"' \
  --customize-hook='for wheel in '"$folder"'/wheels/*.whl; do '"$PYTHON"' -m zipfile -e "$wheel" "$1/'"$site"'"; done' \
  --customize-hook='printf "#!/usr/bin/python3.11\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n" >"$1/usr/local/bin/pip"; chmod 755 "$1/usr/local/bin/pip"' \
  --customize-hook='cp '"$CA_BUNDLE"' "$1/etc/ssl/certs/ca-certificates.crt"' \
  bookworm - "$MIRROR" \
  | "$DOCKER" import \
    -c 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' \
    -c 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' \
    -c 'ENV REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt' \
    -c 'CMD ["python3"]' - "$IMAGE" >/dev/null
"$DOCKER" run --rm "$IMAGE" pip --version

if [ -n "${WHEELS:-}" ]; then
  tar -C "$WHEELS" -c . | "$DOCKER" import - wheels:local >/dev/null
  echo "wheels:local holds $(ls "$WHEELS" | wc -l) files"
fi
