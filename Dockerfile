# Training in a container, on a CPU or an NVIDIA GPU: docs/docker.md.
FROM debian:bookworm-slim

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
         ca-certificates fonts-liberation python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/*

# What decides the packages comes first: a change of the code does not install them again.
WORKDIR /app
COPY pyproject.toml setup.py LICENSE constraints.txt constraints-vllm.txt ./
COPY scripts/setup.py scripts/recipes.py scripts/
COPY grpo/model/bundled.py grpo/
# cpu or cuda: the machine that builds tells nothing of the one that trains.
ARG DEVICE=cpu
# uv compiles nothing by itself, and the user below may not write what Python would then; nor may
# it read the model, which safetensors writes for its owner alone.
RUN PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 \
      python3 scripts/setup.py --device "$DEVICE" \
    && chmod --recursive a+rX .cache \
    && rm -rf /var/lib/apt/lists/*
# 1 adds vLLM, and the compiler that its kernels' launchers want.
ARG VLLM=0
# hadolint ignore=DL3008
RUN if [ "$VLLM" = 1 ]; then \
      PIP_NO_CACHE_DIR=1 python3 scripts/setup.py --device "$DEVICE" --vllm \
      && apt-get update \
      && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
      && rm -rf /var/lib/apt/lists/*; \
    fi

# Chromium's own sandbox needs user namespaces, which a container has not: the container is the
# sandbox, its user is not root, and the browser reaches no host.
RUN printf '#!/bin/sh\nexec /usr/lib/chromium/chromium-headless-shell --no-sandbox "$@"\n' \
      > /usr/local/bin/chromium-in-container \
    && chmod 755 /usr/local/bin/chromium-in-container \
    && useradd --create-home --uid 1000 user \
    && install --directory --owner=user --group=user runs /home/user/.cache
ENV GRPO_CHROMIUM=/usr/local/bin/chromium-in-container \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PATH=/app/.venv-vllm/bin:/app/.venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1
COPY examples/ examples/
COPY envs/ envs/
COPY lora/ lora/
COPY grpo/ grpo/

USER 1000
# tini takes in the orphans of a browser that was killed, and hands signals on.
ENTRYPOINT ["tini", "--", "python", "examples/click_test.py"]
