# The worker, with the CUDA libraries that torch brings; the host gives the driver.
#   docker build -f deploy/docker/worker.Dockerfile -t curfew/worker:0.1.0 .
# For a machine without a GPU, of a tenth of the size:
#   docker build -f deploy/docker/worker.Dockerfile -t curfew/worker:0.1.0-cpu \
#     --build-arg EXTRAS=worker,telemetry --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
FROM python:3.11-slim-bookworm AS build
ARG EXTRAS=worker,gpu,telemetry
# Where torch comes from, if not from where pip looks anyway.
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/curfew
WORKDIR /src
COPY constraints.txt ./
# By itself: it is large and changes seldom.
RUN /opt/curfew/bin/pip install -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY LICENSE README.md pyproject.toml ./
COPY benchmarks benchmarks
COPY controller controller
COPY curfew curfew
COPY demo demo
COPY kernels kernels
COPY worker worker
RUN /opt/curfew/bin/pip install -c constraints.txt ".[$EXTRAS]"

FROM python:3.11-slim-bookworm
# Triton compiles its launchers where it runs.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/curfew /opt/curfew
# The demo model, to try without another.
COPY demo/model /opt/demo-model
ENV PATH=/opt/curfew/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
ENV GRPC_VERBOSITY=NONE
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# The root file system may be read-only: what is compiled goes here.
ENV HOME=/cache XDG_CACHE_HOME=/cache TRITON_CACHE_DIR=/cache/triton
VOLUME /cache
USER 65532:65532
EXPOSE 7210 9464
ENTRYPOINT ["curfew"]
CMD ["worker", "--help"]
