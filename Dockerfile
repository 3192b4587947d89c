# One image for every process of Dues: `dues serve`, `dues worker`, `dues beat`, `dues db upgrade` are its commands.
FROM python:3.13-slim-bookworm AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /app
RUN python -m venv --without-pip /opt/dues
COPY requirements-run.txt ./
# Wheels only: nothing is compiled, and no package runs code of its own here.
RUN python -m pip --python /opt/dues/bin/python install --no-deps --require-hashes --only-binary=:all: -r requirements-run.txt
COPY requirements-build.txt ./
RUN python -m venv --without-pip /opt/build \
 && python -m pip --python /opt/build/bin/python install --no-deps --require-hashes --only-binary=:all: -r requirements-build.txt
COPY . ./
# The source stays in /app: Alembic reads pyproject.toml and migrations/ beside the packages.
RUN PYTHONPATH="$(/opt/build/bin/python -c 'import setuptools, pathlib; print(pathlib.Path(setuptools.__file__).parents[1])')" \
    python -m pip --python /opt/dues/bin/python install --no-index --no-deps --no-build-isolation --editable . \
 && rm -rf requirements-*.txt \
 && /opt/dues/bin/python -m compileall -q /app /opt/dues/lib

FROM python:3.13-slim-bookworm

LABEL org.opencontainers.image.title="dues" \
      org.opencontainers.image.description="Keeps a membership site's database in step with Stripe" \
      org.opencontainers.image.licenses="MIT"
# production is the safe default: it refuses development secrets and names what is missing.
ENV DUES_ENV=production PATH=/opt/dues/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN groupadd --gid 10001 dues && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent dues
COPY --from=build /opt/dues /opt/dues
COPY --from=build /app /app
# Numbers, so that an orchestrator can see that it is not root.
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
ENTRYPOINT ["dues"]
CMD ["--help"]
