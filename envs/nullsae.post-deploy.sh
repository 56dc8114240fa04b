#!/bin/sh
# Run by Snakemake in the environment that it made (--sdm conda): rules call `nullsae`, which is in
# no channel. It is the checkout's own code, as everywhere.
set -eu
if ! test -f src/nullsae/cli/main.py; then
    echo "--sdm conda: start snakemake in the checkout of nullsae, not in $PWD" >&2
    exit 1
fi
python -m pip install --quiet --no-deps --no-build-isolation --editable .
