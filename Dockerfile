# Training on a CPU or an NVIDIA GPU: docs/docker.md.
FROM debian:bookworm-slim

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
         ca-certificates fonts-liberation python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/*

# The files that decide the packages come first: a change of other code does not reinstall them.
WORKDIR /app
COPY pyproject.toml setup.py LICENSE constraints.txt constraints-vllm.txt ./
COPY scripts/setup.py scripts/recipes.py scripts/
COPY envs/browser/server/chromium.py envs/browser/server/
COPY grpo/errors.py grpo/
COPY grpo/model/bundled.py grpo/model/pretrained.py grpo/model/
# cpu or cuda: the image may be built on another machine than it runs on.
ARG DEVICE=cpu
# uv compiles only when told to, and the user below cannot write .pyc files. safetensors makes the
# model's file readable for its owner only.
RUN PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 \
      python3 scripts/setup.py --device "$DEVICE" \
    && chmod --recursive a+rX .cache \
    && rm -rf /var/lib/apt/lists/*
# 1 adds vLLM, the compiler for its kernel launchers, and the library that its CPU build links to.
ARG VLLM=0
# hadolint ignore=DL3008
RUN if [ "$VLLM" = 1 ]; then \
      PIP_NO_CACHE_DIR=1 python3 scripts/setup.py --device "$DEVICE" --vllm \
      && apt-get update \
      && apt-get install -y --no-install-recommends gcc libc6-dev libnuma1 python3-dev \
      && rm -rf /var/lib/apt/lists/*; \
    fi

# Chromium's own sandbox needs user namespaces, which a container does not allow: the container is
# the sandbox, its user is not root, and the browser resolves no host name.
RUN printf '#!/bin/sh\nexec /usr/lib/chromium/chromium-headless-shell --no-sandbox "$@"\n' \
      > /usr/local/bin/chromium-in-container \
    && chmod 755 /usr/local/bin/chromium-in-container \
    && useradd --create-home --uid 1000 user \
    && install --directory --owner=user --group=user runs /home/user/.cache
ENV GRPO_CHROMIUM=/usr/local/bin/chromium-in-container \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PATH=/app/.venv-vllm/bin:/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1
COPY examples/ examples/
COPY envs/ envs/
COPY lora/ lora/
COPY grpo/ grpo/

USER 1000
# tini reaps the orphans of a killed browser and forwards signals.
ENTRYPOINT ["tini", "--", "grpo", "train"]
