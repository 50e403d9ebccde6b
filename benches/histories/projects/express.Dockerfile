# JavaScript: dependencies, linter, tests.
ARG BASE
FROM ${BASE}
WORKDIR /src
COPY package.json .npmrc ./
RUN npm install
COPY . .
RUN npm run lint
RUN npm test
