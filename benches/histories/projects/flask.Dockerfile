# Python: a package and its tests.
ARG BASE
FROM ${BASE}
WORKDIR /src
RUN pip install pytest asgiref python-dotenv
COPY . .
RUN pip install .
RUN python -m pytest -q tests
