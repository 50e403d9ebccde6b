# TypeScript: dependencies by a lock file, formatter, compiler and bundler.
ARG BASE
FROM ${BASE}
WORKDIR /src
COPY package.json package-lock.json ./
RUN npm ci
COPY . .
RUN npm run format-check
RUN npm run build
