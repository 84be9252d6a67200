# The image that runs pipeline steps and trainings. Targets: runtime-cpu, runtime-gpu, runtime-gpu-ops.
#
#   docker build -f docker/train.Dockerfile --target runtime-cpu -t intern-vision:0.1.0 .
#
# Kept to what BuildKit 0.8 knows. On a Docker older than 23 set DOCKER_BUILDKIT=1.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# Its CUDA has the major version of the one that torch in docker/requirements/torch-gpu.txt is built with.
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu22.04
# An image of wheels that the index has not; empty where every wheel is there.
ARG WHEELS_IMAGE=scratch

FROM ${WHEELS_IMAGE} AS wheels

FROM ${CUDA_IMAGE} AS cuda

# The compiler and what it compiles against, but torch.
FROM ${PYTHON_IMAGE} AS tools
# The official Python has its headers; Debian's has them in a package.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && headers="$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
    && if [ ! -e "$headers/Python.h" ]; then apt-get install -y --no-install-recommends libpython3.11-dev; fi \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv --without-pip /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_COMPILE=1 \
    PIP_ROOT_USER_ACTION=ignore
COPY docker/requirements/build.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --no-deps --require-hashes --only-binary :all: -r /requirements/build.txt

# DeepSpeed compiles this operator at its start on a CPU unless it is there already. It has no machine-specific flags.
# A stage of its own, because it takes minutes and only torch changes it.
FROM tools AS deepspeed-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG MAX_JOBS=2
ARG SHM_OPERATOR=1
COPY docker/requirements/torch-cpu.txt docker/requirements/deepspeed.txt /requirements/
RUN --mount=type=bind,from=wheels,source=/,target=/opt/wheels \
    pip --python /opt/venv/bin/python install --no-deps --require-hashes --no-cache-dir \
    --index-url "$TORCH_INDEX" --find-links /opt/wheels -r /requirements/torch-cpu.txt
RUN DS_ACCELERATOR=cpu DS_BUILD_SHM_COMM="$SHM_OPERATOR" MAX_JOBS="$MAX_JOBS" \
    pip --python /opt/venv/bin/python wheel --no-deps --require-hashes --no-build-isolation --no-cache-dir \
    --wheel-dir /wheels -r /requirements/deepspeed.txt

# What every target installs.
FROM tools AS common
COPY docker/requirements/train.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --no-deps --require-hashes -r /requirements/train.txt
# The libraries' own tests are a tenth of the whole, and nothing imports them.
RUN find /opt/venv/lib -type d -name tests -prune -exec rm -rf {} +

# This package by itself, so that a change of code is a layer of a megabyte.
FROM common AS package
COPY pyproject.toml README.md LICENSE /source/
COPY components /source/components
COPY pipelines /source/pipelines
COPY src /source/src
RUN pip --python /opt/venv/bin/python install --no-deps --no-build-isolation --no-cache-dir --root /package /source \
    && python -m compileall -q --invalidation-mode unchecked-hash -s /package -p / /package/opt/venv/lib

FROM common AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG SHM_OPERATOR=1
COPY docker/requirements/torch-cpu.txt /requirements/
RUN --mount=type=bind,from=wheels,source=/,target=/opt/wheels \
    pip --python /opt/venv/bin/python install --no-deps --require-hashes --no-cache-dir \
    --index-url "$TORCH_INDEX" --find-links /opt/wheels -r /requirements/torch-cpu.txt
# Headers serve compilers alone, and there is none where this goes. A file of torch for newer Pythons does not compile.
RUN --mount=type=bind,from=deepspeed-cpu,source=/wheels,target=/wheels \
    pip --python /opt/venv/bin/python install --no-deps --no-cache-dir /wheels/deepspeed-*.whl \
    && SHM_OPERATOR="$SHM_OPERATOR" python -c 'import os; from deepspeed.git_version_info import installed_ops as ops; \
assert ops["deepspeed_shm_comm"] == bool(int(os.environ["SHM_OPERATOR"])), ops' \
    && rm -rf /opt/venv/lib/python3.11/site-packages/torch/include /opt/venv/lib/python3.11/site-packages/pyarrow/include \
    && find /opt/venv -name '*.a' -delete \
    && python -m compileall -q -x py312_ --invalidation-mode unchecked-hash /opt/venv/lib

# The wheels of torch bring CUDA's libraries; the driver is the host's.
FROM common AS gpu
COPY docker/requirements/torch-gpu.txt docker/requirements/deepspeed.txt /requirements/
RUN pip --python /opt/venv/bin/python install --no-deps --require-hashes --no-cache-dir -r /requirements/torch-gpu.txt
RUN DS_ACCELERATOR=cuda DS_BUILD_OPS=0 \
    pip --python /opt/venv/bin/python install --no-deps --require-hashes --no-build-isolation --no-cache-dir \
    -r /requirements/deepspeed.txt

# DeepSpeed's optimizers and its reader of NVMe disks, for machines without a compiler.
FROM gpu AS gpu-ops
ARG MAX_JOBS=2
ARG TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0;10.0;12.0+PTX"
RUN apt-get update && apt-get install -y --no-install-recommends libaio-dev && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,from=cuda,source=/usr/local/cuda-13.0,target=/usr/local/cuda \
    CUDA_HOME=/usr/local/cuda DS_ACCELERATOR=cuda DS_BUILD_FUSED_ADAM=1 DS_BUILD_CPU_ADAM=1 DS_BUILD_AIO=1 \
    MAX_JOBS="$MAX_JOBS" TORCH_CUDA_ARCH_LIST="$TORCH_CUDA_ARCH_LIST" \
    pip --python /opt/venv/bin/python install --no-deps --require-hashes --no-build-isolation --no-cache-dir \
    --force-reinstall -r /requirements/deepspeed.txt \
    && python -c 'from deepspeed.git_version_info import installed_ops as ops; assert ops["fused_adam"] and ops["cpu_adam"] and ops["async_io"], ops'

FROM gpu AS gpu-compiled
RUN python -m compileall -q -x py312_ --invalidation-mode unchecked-hash /opt/venv/lib

FROM gpu-ops AS gpu-ops-compiled
RUN python -m compileall -q -x py312_ --invalidation-mode unchecked-hash /opt/venv/lib

# What the targets share. The user is fixed and of group 0; any other user id of that group works too, and any at all
# with a writable /tmp, where the home is.
FROM ${PYTHON_IMAGE} AS runtime
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log \
    && useradd --uid 10001 --gid 0 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin intern \
    && install -d -o 10001 -g 0 -m 0775 /work
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    INTERN_STATE=/tmp/intern \
    PYTHONUNBUFFERED=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    DO_NOT_TRACK=true \
    GIT_PYTHON_REFRESH=quiet
WORKDIR /work
ENTRYPOINT ["tini", "--"]
CMD ["intern", "--help"]

FROM runtime AS runtime-gpu-ops
RUN apt-get update && apt-get install -y --no-install-recommends libaio1 && rm -rf /var/lib/apt/lists/*
COPY --from=gpu-ops-compiled /opt/venv /opt/venv
COPY --from=package /package/ /
COPY LICENSE docker/sbom.py /usr/share/intern-vision/
RUN python /usr/share/intern-vision/sbom.py /usr/share/intern-vision/sbom.cdx.json
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="intern-vision" \
      org.opencontainers.image.description="Steps and trainings of INTERN, with CUDA and DeepSpeed's operators" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
USER 10001:0

FROM runtime AS runtime-gpu
COPY --from=gpu-compiled /opt/venv /opt/venv
COPY --from=package /package/ /
COPY LICENSE docker/sbom.py /usr/share/intern-vision/
RUN python /usr/share/intern-vision/sbom.py /usr/share/intern-vision/sbom.cdx.json
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="intern-vision" \
      org.opencontainers.image.description="Steps and trainings of INTERN, with CUDA" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
USER 10001:0

# The last stage is what a build without --target makes.
FROM runtime AS runtime-cpu
COPY --from=cpu /opt/venv /opt/venv
COPY --from=package /package/ /
COPY LICENSE docker/sbom.py /usr/share/intern-vision/
RUN python /usr/share/intern-vision/sbom.py /usr/share/intern-vision/sbom.cdx.json
ENV DS_ACCELERATOR=cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="intern-vision" \
      org.opencontainers.image.description="Steps and trainings of INTERN, without CUDA" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
USER 10001:0
