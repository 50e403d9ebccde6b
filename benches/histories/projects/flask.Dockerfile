# Python: a package and its tests, but for one that asks for an older Werkzeug.
ARG BASE
FROM ${BASE}
WORKDIR /src
RUN pip install pytest==8.4.2 asgiref python-dotenv
COPY . .
RUN pip install .
RUN python -m pytest -q tests --deselect tests/test_reqctx.py::test_bad_environ_raises_bad_request
