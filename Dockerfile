# docker build -t sb3-pgext . && docker run --rm sb3-pgext zoo list
FROM python:3.12-slim

# What pygame and moviepy need to draw and to film without a screen.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ffmpeg libgl1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/sb3-pgext
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY sb3_pgext sb3_pgext
COPY zoo_configs zoo_configs
# The CPU build; for a GPU leave the index out.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    -c constraints.txt ".[compare,hub,mujoco]"

RUN useradd --create-home agent
USER agent
WORKDIR /home/agent
ENTRYPOINT ["sb3-pgext"]
CMD ["--help"]
