# Postgres from Debian's packages, for one machine; a cluster brings its own database.
#
#   docker build -f docker/postgres.Dockerfile -t intern-vision-postgres:0.1.0 .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE}
# Without Debian's own cluster, which would lie in the image and belong to another user.
RUN apt-get update \
    && apt-get install -y --no-install-recommends postgresql-common tini \
    && echo 'create_main_cluster = false' >> /etc/postgresql-common/createcluster.conf \
    && apt-get install -y --no-install-recommends postgresql-15 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log \
    && useradd --uid 10001 --gid 0 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin intern \
    && install -d -o 10001 -g 0 -m 0700 /data
COPY --chmod=0755 docker/postgres.sh /usr/local/bin/serve-postgres
COPY LICENSE docker/sbom.py /usr/share/intern-vision/
RUN python3 /usr/share/intern-vision/sbom.py /usr/share/intern-vision/sbom.cdx.json
ENV PATH=/usr/lib/postgresql/15/bin:$PATH \
    PGDATA=/data/pgdata \
    HOME=/tmp
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="intern-vision-postgres" \
      org.opencontainers.image.description="Postgres for one machine" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
USER 10001:0
WORKDIR /data
# Fast shutdown: clients are disconnected, no data is lost.
STOPSIGNAL SIGINT
EXPOSE 5432
ENTRYPOINT ["tini", "--"]
CMD ["serve-postgres"]
