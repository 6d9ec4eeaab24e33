# The image of everything: `weave-kube` (the router under Kubernetes; `weave-kube init` prepares a node), `weave-npc`,
# `weaver` and `weave` by themselves. Built for whichever platform it is built on, amd64 and arm64 alike.
FROM python:3.13-slim-trixie AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libsodium-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY deploy/requirements.txt ./
RUN python -m venv /opt/weave \
    && /opt/weave/bin/pip install --no-cache-dir --require-virtualenv -r requirements.txt "setuptools>=68,<82"
COPY . .
# The core and the CNI plugin are optional elsewhere, here they must have been built.
RUN /opt/weave/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && cd / && /opt/weave/bin/python -c 'import cni.install as c, sleeve._sleeve, weave_py.npc; c.COURIER.stat()' \
    && /opt/weave/bin/pip uninstall -y --quiet setuptools pip \
    && rm -f /opt/weave/bin/activate* /opt/weave/bin/Activate*

FROM python:3.13-slim-trixie
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="weave_py" \
      org.opencontainers.image.description="A mesh overlay router for containers, wire-compatible with Weave Net 2.8" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# iptables and ipset only to remove what Weave Net left, and where another program's FORWARD chain is a legacy one; kmod
# to load what a kernel has as modules; iproute2 for people.
RUN apt-get update \
    && apt-get install -y --no-install-recommends iproute2 ipset iptables kmod libsodium23 \
    && rm -rf /var/lib/apt/lists/* /var/cache/debconf/* /var/log/* /usr/share/doc/* /usr/share/man/* \
    && rm -rf /usr/local/lib/python3.*/ensurepip /usr/local/lib/python3.*/idlelib /usr/local/lib/python3.*/tkinter \
              /usr/local/lib/python3.*/site-packages/* /usr/local/bin/pip* /usr/local/bin/idle* \
    && mkdir -p /weavedb /run/weave /home/weave \
    && printf '#!/bin/sh\nexec weave-kube "$@"\n' > /home/weave/launch.sh \
    && printf '#!/bin/sh\nexec weave-kube init "$@"\n' > /home/weave/init.sh \
    && printf '#!/bin/sh\nexec weave "$@"\n' > /home/weave/weave \
    && chmod 755 /home/weave/*
COPY --from=build /opt/weave /opt/weave
ENV PATH=/opt/weave/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["weave", "status"]
ENTRYPOINT ["weave-kube"]
