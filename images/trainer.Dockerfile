# The trainer's image: agent, workers, curation. Build in the root of the repository:
#   buildah build -f images/trainer.Dockerfile -t videotrain/trainer:0.1.0 .
# A release is built by images/build.py, which gives the base's digest (--build-arg RELEASE=1 --build-arg
# BASE_DIGEST=@sha256:...) and writes down what went into the image.
# A package index other than PyPI comes as a secret, which leaves no trace: --secret id=pip,src=pip.conf
#
# torch brings its CUDA libraries as wheels (13.0, pinned by trainer.lock); the base adds what belongs to the machine. Any base
# of a Debian kind with Python 3.11 or newer will do.
# Compiled blocks need a compiler in the pod: Triton builds the launcher of its kernels there, against Python's headers, and
# Inductor what it leaves to the CPU.
ARG BASE_IMAGE=docker.io/nvidia/cuda:13.0.1-base-ubuntu24.04
ARG BASE_DIGEST=

FROM ${BASE_IMAGE}${BASE_DIGEST} AS build
ARG RELEASE=
ARG BASE_DIGEST
RUN case "${RELEASE}/${BASE_DIGEST}" in /*|*/@sha256:*) ;; \
    *) echo "BASE_DIGEST: a release names its base by digest, @sha256:..." >&2; exit 1 ;; esac
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 DEBIAN_FRONTEND=noninteractive
# Ubuntu's archive as it was then, such as 20261101T000000Z; packages of the base are those of its digest.
ARG APT_SNAPSHOT=
RUN apt-get ${APT_SNAPSHOT:+--snapshot ${APT_SNAPSHOT}} update \
    && apt-get ${APT_SNAPSHOT:+--snapshot ${APT_SNAPSHOT}} install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv --without-pip /opt/videotrain && python3 -m venv /opt/installer
WORKDIR /source
# `--build-arg EXTRA=flash4` adds FlashAttention 4, for runs with `train.attention: flash4`. The older ones are on no index as
# wheels for this torch and CUDA; torch's own attention (cuDNN's on Hopper) needs neither.
ARG EXTRA=
COPY images/build.lock images/trainer*.lock ./
COPY api ./api
COPY trainer ./trainer
# Whatever comes from an index has a hash; our own wheels are built with what build.lock has brought.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/installer/bin/pip install --require-hashes -r build.lock \
    && /opt/installer/bin/pip --python /opt/videotrain/bin/python install --no-deps --require-hashes \
        -r "trainer${EXTRA:+-$EXTRA}.lock"
RUN for part in api trainer; do (cd $part && /opt/installer/bin/hatchling build -t wheel -d /wheels) || exit 1; done \
    && /opt/installer/bin/pip --python /opt/videotrain/bin/python install --no-deps --no-index /wheels/*.whl
RUN /opt/installer/bin/cyclonedx-py environment --output-reproducible --output-file /opt/videotrain/sbom.cdx.json \
    /opt/videotrain/bin/python

FROM ${BASE_IMAGE}${BASE_DIGEST}
LABEL org.opencontainers.image.title="videotrain trainer" \
      org.opencontainers.image.licenses="Apache-2.0"
ARG APT_SNAPSHOT=
RUN apt-get ${APT_SNAPSHOT:+--snapshot ${APT_SNAPSHOT}} update \
    && DEBIAN_FRONTEND=noninteractive apt-get ${APT_SNAPSHOT:+--snapshot ${APT_SNAPSHOT}} install -y --no-install-recommends \
        ca-certificates g++ libibverbs1 librdmacm1 python3 python3-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/videotrain /opt/videotrain
# Bytecode is stored already; caches that libraries keep in the home directory go to the run's scratch volumes.
ENV PATH=/opt/videotrain/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /tmp
USER 1000:1000
EXPOSE 9410
ENTRYPOINT []
CMD ["videotrain-trainer", "agent"]
