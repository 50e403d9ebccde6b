# Go: modules, one program.
ARG BASE
FROM ${BASE}
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -o /usr/local/bin/fzf .
RUN fzf --version
