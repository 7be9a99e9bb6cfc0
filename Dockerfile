# The web page on a GPU. NOT BUILT AND NOT TESTED: this repository is developed without Docker.
#
#   docker build -t openavs .
#   docker run --gpus all -p 127.0.0.1:7860:7860 -v openavs-models:/models openavs
#   docker run --gpus all -p 127.0.0.1:7860:7860 -v openavs-models:/models openavs --pipeline openavs
#
# The torch wheel includes CUDA; the host needs NVIDIA's driver and container toolkit. The page has no password:
# publish its port to a network only behind an authenticating proxy.

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY .ci/release.txt .ci/release.txt
RUN pip install --no-cache-dir -r .ci/release.txt
COPY . .
RUN python -m build --no-isolation --wheel --outdir /wheels

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 10001 openavs && install -d -o openavs /models /work
COPY constraints.txt /tmp/constraints.txt
COPY --from=build /wheels /tmp/wheels
RUN pip install --no-cache-dir -c /tmp/constraints.txt "$(ls /tmp/wheels/*.whl)[web,openai]" && rm -rf /tmp/wheels
ENV HF_HOME=/models OPENAVS_CACHE=/work/cache PYTHONUNBUFFERED=1
USER openavs
WORKDIR /work
VOLUME ["/models"]
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/', timeout=4)"]
ENTRYPOINT ["openavs", "serve", "--host", "0.0.0.0", "--port", "7860"]
CMD ["--pipeline", "tiny"]
