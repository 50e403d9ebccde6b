# Rust: the dependencies in a step of their own, as it is often written, then the program.
ARG BASE
FROM ${BASE}
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && touch src/lib.rs && cargo fetch --locked
COPY . .
RUN cargo build --locked --offline
RUN target/debug/hexyl --length 64 Cargo.toml
