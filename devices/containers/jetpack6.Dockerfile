# JetPack 6.1 and 6.2 (L4T 36.4) on an Orin: CUDA 12.6, TensorRT 10.3 and Python 3.10 of the base image, NVIDIA's torch.
#
# Put together from NVIDIA's instructions; not built or run on a Jetson yet.
#
#   pip wheel --no-deps --wheel-dir dist .
#   docker build -f devices/containers/jetpack6.Dockerfile -t edgetta:jetpack6 dist/

FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0

# NVIDIA's torch links against cuSPARSELt, which the image lacks.
ADD https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2204/arm64/cuda-keyring_1.1-1_all.deb /opt/
RUN dpkg -i /opt/cuda-keyring_1.1-1_all.deb && rm /opt/cuda-keyring_1.1-1_all.deb \
    && apt-get update \
    && apt-get install -y --no-install-recommends python3-pip libopenblas0 libcusparselt0 \
    && rm -rf /var/lib/apt/lists/*

# The torch of PyPI is built for CUDA 13 and leaves this GPU idle. NVIDIA's is built against numpy 1.
ARG TORCH=https://developer.download.nvidia.com/compute/redist/jp/v61/pytorch/torch-2.5.0a0+872d972e41.nv24.08.17622132-cp310-cp310-linux_aarch64.whl
RUN python3 -m pip install --no-cache-dir "${TORCH}" "numpy<2"

COPY edgetta-*.whl /opt/
RUN python3 -m pip install --no-cache-dir "$(ls /opt/edgetta-*.whl)[onnxruntime,serve]" "numpy<2" \
    && rm /opt/edgetta-*.whl

RUN useradd --create-home --home-dir /srv/edgetta --groups video edgetta
USER edgetta
WORKDIR /srv/edgetta
ENTRYPOINT ["edgetta"]
CMD ["doctor"]
