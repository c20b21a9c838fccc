# The operator's image. Build in the root of the repository:
#   buildah build -f images/operator.Dockerfile -t videotrain/operator:0.1.0 .
# A release is built by images/build.py, which gives the base's digest (--build-arg RELEASE=1 --build-arg
# BASE_DIGEST=@sha256:...) and writes down what went into the image.
# A package index other than PyPI comes as a secret, which leaves no trace: --secret id=pip,src=pip.conf
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm
ARG BASE_DIGEST=

FROM ${BASE_IMAGE}${BASE_DIGEST} AS build
ARG RELEASE=
ARG BASE_DIGEST
RUN case "${RELEASE}/${BASE_DIGEST}" in /*|*/@sha256:*) ;; \
    *) echo "BASE_DIGEST: a release names its base by digest, @sha256:..." >&2; exit 1 ;; esac
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv --without-pip /opt/videotrain && python3 -m venv /opt/installer
WORKDIR /source
COPY images/build.lock images/operator.lock ./
COPY api ./api
COPY operator ./operator
# Whatever comes from an index has a hash; our own wheels are built with what build.lock has brought.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/installer/bin/pip install --require-hashes -r build.lock \
    && /opt/installer/bin/pip --python /opt/videotrain/bin/python install --no-compile --no-deps --only-binary :all: \
        --require-hashes -r operator.lock
RUN for part in api operator; do (cd $part && /opt/installer/bin/hatchling build -t wheel -d /wheels) || exit 1; done \
    && /opt/installer/bin/pip --python /opt/videotrain/bin/python install --no-compile --no-deps --no-index /wheels/*.whl \
    && /opt/installer/bin/cyclonedx-py environment --output-reproducible --output-file /opt/videotrain/sbom.cdx.json \
        /opt/videotrain/bin/python
# Libraries' own tests are not needed, nor bytecode of the client's two thousand classes, which are imported one by one.
RUN find /opt/videotrain -depth -type d \( -name __pycache__ -o -name tests -o -name test \) -exec rm -rf {} + \
    && /opt/videotrain/bin/python -m compileall -q -j 0 -x 'kubernetes/(aio/)?client/(api|models)/' /opt/videotrain/lib

FROM ${BASE_IMAGE}${BASE_DIGEST}
LABEL org.opencontainers.image.title="videotrain operator" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/videotrain /opt/videotrain
# The root file system may be read-only, so there is nowhere to keep more bytecode.
ENV PATH=/opt/videotrain/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 65532:65532
EXPOSE 8080 9443
ENTRYPOINT []
CMD ["videotrain-operator", "run"]
