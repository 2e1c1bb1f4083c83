# One image for ECS, Lambda and everything else that runs containers:
#
#   docker buildx build --platform linux/arm64 --tag ses-ledger:arm64 .
#   infra/build-image --arch arm64                                        where there is no container engine
#
# The compiler runs on the machine that builds, whatever it builds for.
FROM --platform=$BUILDPLATFORM docker.io/library/rust:1.95.0-slim-bookworm AS build
WORKDIR /build

# What writes the list of crates into the binary, and beside it.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo install --locked --root /usr/local cargo-auditable@0.7.7 cargo-cyclonedx@0.5.9

# Debian's own cross compiler links against the glibc of bookworm, which is also the image's. The packages come from a
# signed archive and leave nothing in the image.
ENV CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
ARG TARGETARCH
# hadolint ignore=DL3008
RUN set -eu; \
    case "$TARGETARCH" in amd64) cpu=x86_64 gcc=gcc-x86-64 ;; arm64) cpu=aarch64 gcc=gcc-aarch64 ;; esac; \
    echo "$cpu-unknown-linux-gnu" >/target; \
    rustup target add "$(cat /target)"; \
    if ! command -v "$cpu-linux-gnu-gcc"; then \
      apt-get update; \
      apt-get install --yes --no-install-recommends "$gcc-linux-gnu" "libc6-dev-$TARGETARCH-cross"; \
      rm -rf /var/lib/apt/lists/*; \
    fi

COPY Cargo.toml Cargo.lock ./
COPY migrations migrations
COPY src src
# What was compiled of the dependencies stays in the cache. Of this crate nothing does: its files may be newer than the
# cache and have older times.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,sharing=locked \
    set -eu; \
    target=$(cat /target); \
    touch src/lib.rs src/main.rs; \
    cargo auditable build --locked --profile dist --target "$target"; \
    mkdir /out; \
    cp "target/$target/dist/ses-ledger" /out/; \
    cargo cyclonedx --quiet --format json --spec-version 1.5 --target "$target" --override-filename ses-ledger.cdx; \
    mv ses-ledger.cdx.json /out/

# The platform is named because buildah 1.28 would take the first stage's.
# hadolint ignore=DL3065
FROM --platform=$TARGETPLATFORM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="ses-ledger" \
      org.opencontainers.image.description="The exact history of every email that an application sends through Amazon SES" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian12:nonroot"
COPY --from=build /out/ses-ledger.cdx.json /usr/local/share/sbom/
COPY --from=build /out/ses-ledger /usr/local/bin/
# A number, so that an orchestrator can see that it is not root. Nothing is ever written: the root file system may be
# read-only.
USER 65532:65532
# ECS and Lambda do not look at it: the task definition says the same.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["/usr/local/bin/ses-ledger", "health"]
ENTRYPOINT ["/usr/local/bin/ses-ledger"]
CMD ["run"]
