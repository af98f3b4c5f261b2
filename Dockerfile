# Build: the whole workspace, with the compiler that the tests run with.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
# `--build-arg FEATURES=glommio` adds the front end on io_uring. The build script of glommio runs
# git, and cannot do without.
ARG FEATURES=
RUN case "$FEATURES" in *glommio*) \
      apt-get update && apt-get install --yes --no-install-recommends git ;; \
    esac
COPY . .
RUN cargo build --release --locked --package vllm-proxy --features "$FEATURES"

# Run: a C library and nothing else. No shell, no root.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/vllm-proxy /usr/local/bin/vllm-proxy
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=6s --start-period=5s CMD ["vllm-proxy", "health"]
ENTRYPOINT ["vllm-proxy"]
CMD ["server"]
