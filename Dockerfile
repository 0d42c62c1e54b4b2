# The image of every node, and of whoever submits jobs: docker build -t REGISTRY/minos_ray:0.1.0 .
# vllm 0.32.0 and torch 2.13.0 on PyPI are built for CUDA 13, which needs driver 580 or newer on the machines. The
# compiler of this base is for what vLLM and Triton compile on their first start.
FROM nvidia/cuda:13.0.0-devel-ubuntu22.04

# rsync, ssh and boto3 are for Ray's launcher, wget for KubeRay's probes. constraints.txt was tested with Python 3.11.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends software-properties-common \
    && add-apt-repository -y ppa:deadsnakes/ppa \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        build-essential ca-certificates libnuma1 openssh-client python3.11 python3.11-dev python3.11-venv rsync wget \
    && rm -rf /var/lib/apt/lists/*

# Login shells, which Ray's launcher starts, set PATH anew.
ENV VIRTUAL_ENV=/opt/minos PATH=/opt/minos/bin:$PATH
RUN echo 'export PATH=/opt/minos/bin:$PATH' > /etc/profile.d/minos.sh \
    && useradd --create-home --uid 1000 --shell /bin/bash ray \
    && mkdir -p /opt/minos /opt/minos_ray /mnt/shared && chown ray:ray /opt/minos /opt/minos_ray /mnt/shared
USER ray
WORKDIR /opt/minos_ray

# What the package needs, about 10 GB, as a layer that a change of the code leaves alone.
COPY --chown=ray:ray pyproject.toml constraints.txt README.md LICENSE ./
RUN python3.11 -m venv /opt/minos && mkdir minos_ray && touch minos_ray/__init__.py \
    && pip install --no-cache-dir -c constraints.txt '.[gpu,lora,serve]' boto3 \
    && rm -rf build ./*.egg-info minos_ray

COPY --chown=ray:ray minos_ray minos_ray
COPY --chown=ray:ray jobs jobs
RUN pip install --no-cache-dir --no-deps --force-reinstall . \
    && python -c 'import deepspeed, ray, torch, transformers.models.mistral.modeling_mistral; assert torch.version.cuda' \
    && minos --help > /dev/null
