# C: make, and a short test.
ARG BASE
FROM ${BASE}
WORKDIR /src
COPY . .
RUN make -j2
RUN ./lua -e 'assert(_VERSION)'
RUN cd testes && ../lua strings.lua && ../lua sort.lua
