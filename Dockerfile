# syntax=docker/dockerfile:1
# Three images from one lock:
#   server       learns with torch, runs trunks on an NVIDIA GPU      docker build --target server .
#   server-lite  no torch: trunks that are ONNX files, on the CPU     docker build --target server-lite .
#   edge         `everlearn edge run`: a device without code          docker build --target edge .
#
# Without Docker, and without its registry: `buildah bud --isolation chroot --target edge --build-arg PYTHON_IMAGE=...`, on
# any Debian whose `python` (3.11 or newer) has pip and venv.
#
#   docker run --ulimit core=0 -v everlearn:/var/lib/everlearn -p 127.0.0.1:8470:8470 IMAGE
#
# The server has no authentication yet: publish its port to loopback, or to a network that you trust. A core dump would
# hold raw data, hence the limit. Every dependency is pinned and checked by hash (requirements/*.txt, `make lock`).
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

# The wheel of this checkout, with the build tools that the lock names.
FROM base AS wheel
WORKDIR /src
COPY requirements/dev.txt requirements/dev.txt
RUN awk '/^[a-z]/ { keep = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } keep' \
      requirements/dev.txt > build.txt \
 && pip install --require-hashes -r build.txt
COPY pyproject.toml README.md ./
COPY zoo zoo
COPY server server
COPY clients/python clients/python
COPY protos protos
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

# One environment per target. Dependencies come first: they change seldom, and their layer is cached.
FROM base AS environment
RUN python -m venv /opt/everlearn
ENV PATH=/opt/everlearn/bin:$PATH

FROM environment AS server-environment
COPY requirements/server-gpu.txt requirements.txt
RUN pip install --require-hashes -r requirements.txt
COPY --from=wheel /dist /dist
RUN pip install --no-deps /dist/*.whl && everlearn-server --version

FROM environment AS server-lite-environment
COPY requirements/server-lite.txt requirements.txt
RUN pip install --require-hashes -r requirements.txt
COPY --from=wheel /dist /dist
RUN pip install --no-deps /dist/*.whl && everlearn-server --version

FROM environment AS edge-environment
COPY requirements/edge.txt requirements.txt
RUN pip install --require-hashes -r requirements.txt
COPY --from=wheel /dist /dist
RUN pip install --no-deps /dist/*.whl && everlearn edge run --help > /dev/null

# What every image has when it runs: no root, no pip cache, no compiler.
FROM base AS runtime
RUN useradd --system --uid 10001 --home-dir /var/lib/everlearn --create-home --shell /usr/sbin/nologin everlearn
ENV PATH=/opt/everlearn/bin:$PATH

FROM runtime AS serving
# Freed memory is overwritten, and none lingers in thread caches: raw data is out of the heap a moment after it was used.
# (The server would set these by starting itself anew; larger thresholds for big messages it sets in any case.)
ENV MALLOC_PERTURB_=165 PYTHONMALLOC=malloc GLIBC_TUNABLES=glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0
ENV EVERLEARN_LISTEN=0.0.0.0:8470 EVERLEARN_DATA=/var/lib/everlearn
VOLUME /var/lib/everlearn
EXPOSE 8470
USER everlearn
WORKDIR /var/lib/everlearn
STOPSIGNAL SIGTERM
# The first start pulls backbones only when a model is applied, so the server answers within seconds.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import os, sys, grpc; from grpc_health.v1 import health_pb2 as m, health_pb2_grpc as s; a = '127.0.0.1:' + os.environ['EVERLEARN_LISTEN'].rsplit(':', 1)[1]; sys.exit(s.HealthStub(grpc.insecure_channel(a)).Check(m.HealthCheckRequest(), timeout=4).status != 1)"]
ENTRYPOINT ["everlearn-server"]

FROM serving AS server
COPY --from=server-environment /opt/everlearn /opt/everlearn
# ONNX Runtime finds CUDA and cuDNN where torch's wheels put them.
ENV LD_LIBRARY_PATH=/opt/everlearn/lib/python3.12/site-packages/nvidia/cu13/lib:/opt/everlearn/lib/python3.12/site-packages/nvidia/cudnn/lib \
    EVERLEARN_DEVICE=cuda

FROM serving AS server-lite
COPY --from=server-lite-environment /opt/everlearn /opt/everlearn

# docker run -v shelf:/var/lib/everlearn -v /var/spool/camera:/camera IMAGE shelf --server gateway:8470
# The camera's folder is writable by uid 10001, or read with `--after leave`; other verbs: --entrypoint everlearn.
FROM runtime AS edge
COPY --from=edge-environment /opt/everlearn /opt/everlearn
ENV EVERLEARN_EDGE_FOLDER=/var/lib/everlearn/device EVERLEARN_EDGE_SOURCE=/camera
VOLUME /var/lib/everlearn
USER everlearn
WORKDIR /var/lib/everlearn
STOPSIGNAL SIGTERM
ENTRYPOINT ["everlearn", "edge", "run"]
CMD ["--help"]
