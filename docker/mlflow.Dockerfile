# The MLflow server: tracking, registry and proxied artifacts, on SQLite or Postgres, with or without its login.
#
#   docker build -f docker/mlflow.Dockerfile -t intern-vision-mlflow:0.1.0 .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
RUN python3 -m venv --without-pip /opt/venv
COPY docker/requirements/mlflow.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --no-compile --no-deps --require-hashes --only-binary :all: \
    -r /requirements/mlflow.txt \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib

FROM ${PYTHON_IMAGE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log \
    && useradd --uid 10001 --gid 0 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin intern \
    && install -d -o 10001 -g 0 -m 0775 /data
COPY --from=build /opt/venv /opt/venv
COPY LICENSE docker/sbom.py helm/intern-vision/files/mlflow_prepare.py /usr/share/intern-vision/
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    GIT_PYTHON_REFRESH=quiet \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
RUN python /usr/share/intern-vision/sbom.py /usr/share/intern-vision/sbom.cdx.json
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="intern-vision-mlflow" \
      org.opencontainers.image.description="The MLflow server of INTERN" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
USER 10001:0
WORKDIR /data
EXPOSE 5000
ENTRYPOINT ["tini", "--"]
CMD ["mlflow", "server", "--host=0.0.0.0", "--port=5000", "--workers=1"]
