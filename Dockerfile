# An image with both runtimes, a C library and nothing else: no shell, no root. Needs BuildKit, the
# builder of Docker since version 23.
#
#   docker build -t vllm-proxy:0.1.0 --build-arg COMMIT=$(git rev-parse HEAD) .
#
# The same commit gives the same program, whoever builds it and wherever. For the same image, too,
# name the day and the base images by digest (`docker buildx imagetools inspect IMAGE` tells them):
#
#   docker buildx build --build-arg COMMIT=$(git rev-parse HEAD) \
#     --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) \
#     --build-arg RUST_IMAGE=rust:1.95.0-slim-bookworm@sha256:... \
#     --build-arg BASE_IMAGE=gcr.io/distroless/cc-debian12:nonroot@sha256:... \
#     --output type=image,name=vllm-proxy:0.1.0,rewrite-timestamp=true .

# The compiler that the tests run with, on the Debian whose C library the program will meet.
ARG RUST_IMAGE=rust:1.95.0-slim-bookworm
ARG BASE_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_IMAGE} AS build
WORKDIR /src
# The build script of glommio runs git, cannot do without, and needs nothing of what it does.
RUN ln -s /bin/true /usr/local/bin/git
COPY . .
# `glommio` stands for both runtimes. Empty: smol alone, as small as it gets.
ARG FEATURES=glommio
# There is no repository here to ask. What is not told is `unknown`.
ARG COMMIT=
ARG SOURCE_DATE_EPOCH=
# Where sources and libraries lay must not be seen in the program. What cargo downloads is kept from
# build to build; what it makes is not, since cargo tells by their dates whether files are old. Without
# the tables that tell lines of code to debuggers the program has 8 MB instead of 38.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    export VLLM_PROXY_COMMIT="$COMMIT" CARGO_PROFILE_RELEASE_STRIP=debuginfo \
      RUSTFLAGS="--remap-path-prefix=/src=/vllm-proxy --remap-path-prefix=/usr/local/cargo=/cargo" \
      CFLAGS="-ffile-prefix-map=/src=/vllm-proxy -ffile-prefix-map=/usr/local/cargo=/cargo" \
    && cargo build --release --locked --package vllm-proxy --features "$FEATURES"

FROM ${BASE_IMAGE}
ARG COMMIT=
LABEL org.opencontainers.image.title="vllm-proxy" \
      org.opencontainers.image.description="One address for many vLLM servers" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /src/target/release/vllm-proxy /usr/local/bin/vllm-proxy
# `nonroot`, by its number: Kubernetes' runAsNonRoot cannot tell who a name is.
USER 65532:65532
EXPOSE 8000
# Begins a stop that takes up to --drain-grace and --drain-timeout together: `docker stop -t 310`.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=6s --start-period=5s CMD ["vllm-proxy", "health"]
ENTRYPOINT ["vllm-proxy"]
CMD ["server"]
