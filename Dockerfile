# The cache server in an image of its own: one static program, certificates, and nothing else.
#
#     crossdock build --tag registry.example/crossdock:1 --push .
#
# docs/server.md says how to run it.

FROM docker.io/library/rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates gcc g++ libc6-dev make cmake
WORKDIR /source
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
COPY tests tests
# Static: the C library is in it, and resolves names by itself. With --target the flag is not for procedural macros, which
# cannot be static.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    target="$(uname -m)-unknown-linux-gnu" && \
    RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --bin crossdock --target "$target" && \
    install -D "target/$target/release/crossdock" /out/crossdock
RUN install -d /out/etc/ssl/certs /out/tmp && chmod 1777 /out/tmp && \
    cp /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ && \
    echo 'crossdock:x:65532:65532::/data:/none' > /out/etc/passwd

FROM scratch
COPY --from=build /out /
COPY --from=build --chown=65532:65532 --chmod=0700 /out/tmp /data
WORKDIR /data
# A number, so that who forbids root can see that it is none.
USER 65532:65532
ENV HOME=/data CROSSDOCK_LISTEN=0.0.0.0:7070 CROSSDOCK_STORAGE=/data/storage
EXPOSE 7070
VOLUME /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["/crossdock"]
CMD ["serve"]
