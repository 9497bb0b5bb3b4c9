# The package with everything that it needs, for a GPU or for CPUs:
#
#     docker build -t vw2-robot .
#     docker run --rm --gpus all --shm-size 8g -v "$PWD/runs:/vw2/runs" vw2-robot make gpu
#     docker run --rm --gpus all --shm-size 8g -v "$PWD/runs:/vw2/runs" vw2-robot vw2-rollout policy=builtin:calvin-tiny run_dir=runs/tiny
#
# torch brings CUDA itself, so the host needs the driver and the NVIDIA container toolkit alone. Without a GPU the image is
# 4 GB smaller: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
FROM python:3.11-slim-bookworm

# make: the targets; libegl1 and libgl1: the simulator's OpenGL renderer, which takes the GPU's driver from the host.
RUN apt-get update \
    && apt-get install -y --no-install-recommends make git libegl1 libgl1 \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics \
    PYTHONUNBUFFERED=1

WORKDIR /vw2
ARG TORCH_INDEX=
COPY . .
# The versions that are tested together, of constraints.txt.
RUN PIP_EXTRA_INDEX_URL=$TORCH_INDEX PIP_NO_CACHE_DIR=1 make setup
ENV PATH=/vw2/.venv/bin:$PATH
CMD ["python", "-m", "vw2_robot"]
