# The controller, and the `curfew` command for operators. No torch, no GPU.
#   docker build -f deploy/docker/controller.Dockerfile -t curfew/controller:0.1.0 .
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/curfew
WORKDIR /src
COPY LICENSE README.md pyproject.toml constraints.txt ./
COPY benchmarks benchmarks
COPY controller controller
COPY curfew curfew
COPY demo demo
COPY kernels kernels
COPY worker worker
RUN /opt/curfew/bin/pip install -c constraints.txt '.[controller,telemetry]'

FROM python:3.11-slim-bookworm
COPY --from=build /opt/curfew /opt/curfew
ENV PATH=/opt/curfew/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# gRPC's own words on what callers send wrong are not for this log.
ENV GRPC_VERBOSITY=NONE
USER 65532:65532
EXPOSE 7200 7202 9464
ENTRYPOINT ["curfew"]
CMD ["controller", "--help"]
