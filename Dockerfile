# An image with nothing but inferq, ONNX Runtime, the models of the demo and the libraries that they need: no shell.
#
#   docker build --tag inferq .                       for CPUs (x86_64, aarch64)
#   docker build --tag inferq:cuda --target cuda .    for NVIDIA's GPUs (x86_64), 2.4 GB more
#
# Bases are pinned by version. To pin them by digest, give RUST_IMAGE and DEBIAN_IMAGE as name@sha256:…
# `make image-check` builds and runs it without a Docker engine.
ARG RUST_IMAGE=docker.io/library/rust:1.95.0-slim-trixie
ARG DEBIAN_IMAGE=docker.io/library/debian:13.8-slim

FROM ${RUST_IMAGE} AS build
WORKDIR /build
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock README.md ./
COPY config config
# Cargo wants to see every target that Cargo.toml names.
COPY benches benches
COPY tests/runtime tests/runtime
COPY src src
RUN --mount=type=cache,id=inferq-crates,target=/usr/local/cargo/registry \
    --mount=type=cache,id=inferq-target,target=/build/target \
    cargo build --release --locked --bin inferq && cp target/release/inferq /inferq

FROM ${DEBIAN_IMAGE} AS fetch
# Debian removes the old version of a package when it publishes a new one, so none is pinned here.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates libstdc++6 python3-pip \
    && rm -rf /var/lib/apt/lists/*
COPY scripts /scripts

FROM fetch AS root
RUN /scripts/image-root /root-of-image

# Version and hash are checked by pip.
FROM fetch AS onnxruntime
RUN /scripts/onnxruntime /onnxruntime

FROM fetch AS onnxruntime-gpu
RUN /scripts/onnxruntime-gpu && rm /.deps/onnxruntime-gpu/stamp

FROM scratch AS base
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="inferq" \
      org.opencontainers.image.description="Stateless workers that take prediction jobs off RabbitMQ, batch them, run ONNX models and reply" \
      org.opencontainers.image.source="https://github.com/inferq/inferq" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=root /root-of-image /
COPY --from=build /inferq /opt/inferq/inferq
COPY LICENSE-APACHE LICENSE-MIT /opt/inferq/
COPY models /opt/inferq/models
# inferq itself listens on 127.0.0.1 only, which nobody outside of the container could reach.
ENV PATH=/opt/inferq \
    INFERQ_TELEMETRY__LISTEN=0.0.0.0:9090
WORKDIR /opt/inferq
USER 65532:65532
# /metrics, /livez and /readyz; there is no inference port.
EXPOSE 9090
ENTRYPOINT ["/opt/inferq/inferq"]
CMD ["worker"]

FROM base AS cuda
# The driver comes from the node; the container toolkit brings in these parts of it.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=onnxruntime-gpu /.deps/onnxruntime-gpu /opt/inferq/lib

FROM base AS cpu
COPY --from=onnxruntime /onnxruntime /opt/inferq/lib
