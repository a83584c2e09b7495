# JetPack 7.0 and 7.1 (L4T 38) on a Thor: NVIDIA's PyTorch image for Arm servers, with CUDA 13, TensorRT and Python 3.12.
#
# It is the image that NVIDIA's set-up guide for the Thor developer kit names; newer ones come every month. JetPack 7.2
# brings CUDA 13.2 and the Orins: whether an image has code for an Orin's GPU, `edgetta doctor` tells. Not built or run
# on a Jetson yet.
#
#   pip wheel --no-deps --wheel-dir dist .
#   docker build -f devices/containers/jetpack7.Dockerfile -t edgetta:jetpack7 dist/

ARG TAG=25.08-py3
FROM nvcr.io/nvidia/pytorch:${TAG}

# The image pins its own torch and numpy in /etc/pip/constraint.txt, and pip keeps to that.
COPY edgetta-*.whl /opt/
RUN python3 -m pip install --no-cache-dir "$(ls /opt/edgetta-*.whl)[onnxruntime]" && rm /opt/edgetta-*.whl

RUN useradd --create-home --home-dir /srv/edgetta --groups video edgetta
USER edgetta
WORKDIR /srv/edgetta
ENTRYPOINT ["edgetta"]
CMD ["doctor"]
