# JetPack 4 and 5, Raspberry Pi with an old system, and any other machine: edgetta on the processor.
#
# JetPack 4 and 5 have Python 3.6 and 3.8, and no torch is built for their CUDA 10.2 and 11.4 and a Python that edgetta
# runs on: the GPU lies idle here. Not built or run on a Jetson yet.
#
#   pip wheel --no-deps --wheel-dir dist .
#   docker build -f devices/containers/cpu.Dockerfile -t edgetta:cpu dist/

# Docker on JetPack 4 and 5 can be older than 20.10.10, and its filter forbids the clone3 of glibc 2.34: "can't start new
# thread". Bullseye has glibc 2.31.
FROM python:3.10-slim-bullseye

# From PyPI, torch for Arm would bring gigabytes of CUDA that no GPU of these devices can use.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch

COPY edgetta-*.whl /opt/
RUN pip install --no-cache-dir "$(ls /opt/edgetta-*.whl)[onnxruntime,serve]" && rm /opt/edgetta-*.whl

# Cameras belong to the group video.
RUN useradd --create-home --home-dir /srv/edgetta --groups video edgetta
USER edgetta
WORKDIR /srv/edgetta
ENTRYPOINT ["edgetta"]
CMD ["doctor"]
