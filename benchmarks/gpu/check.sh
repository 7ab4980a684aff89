#!/usr/bin/env bash
# Shows on a GPU what the tests can only show on CPUs, and times it, in at most 9 minutes; check.py says what the parts do.
#
#     benchmarks/gpu/check.sh OUT [--device cpu] [--tiny] [PART ...]     all parts unless some are named
#     python benchmarks/gpu/report.py OUT                                tables of what is there, at any time
#
# OUT gets one JSON for each part, rewritten with every row, and ladder/OPTIMIZER/ with tables and figure. Nothing is fetched:
# wheels of packages that the machine lacks are taken from $WHEELS or ./wheels, beside the torch that it has.
# MINUTES=9 is the time for all parts; LADDER="muon adamw" are other optimizers than the ladder's, in their order; COMMIT is the
# commit of a copy without git.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
parts=() options=() out= failed=0 python=${PYTHON:-python3} wheels=${WHEELS:-wheels}
while [ $# -gt 0 ]; do
    case $1 in
        --device) options+=(--device "${2:?--device: cuda or cpu}") && shift ;;
        --tiny) options+=(--tiny) && export TORCH_COMPILE_DISABLE=1 ;; # compiling takes longer than all else
        *) if [ -z "$out" ]; then out=$1; else parts+=("$1"); fi ;;
    esac
    shift
done
: "${out:?usage: check.sh OUT [--device cpu] [--tiny] [PART ...]}"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'kill "$!"; exit 130' INT TERM # of a part all processes
export TMPDIR=$scratch PYTHONPATH="$scratch/site:$root/src${PYTHONPATH:+:$PYTHONPATH}"
if [ -d "$wheels" ]; then # no venv: one made from a venv would not see that one's torch
    "$python" -m pip install -q --no-index --find-links "$wheels" --no-deps --no-compile --target "$scratch/site" "$wheels"/*.whl
fi
missing=$("$python" -c 'from importlib.util import find_spec
needed = "hydra-core:hydra omegaconf antlr4-python3-runtime:antlr4 pydantic rfc8785 filelock numpy pandas scipy matplotlib rich torch"
print(*(p.split(":")[0] for p in needed.split() if find_spec(p.split(":")[-1]) is None))')
if [ -n "$missing" ]; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "missing here: $missing. On a machine with a network and Python $version, in this checkout:" >&2
    echo "    python$version -m pip wheel -c requirements.lock -w wheels ${missing/torch/}" >&2
    echo "Then bring the folder wheels, as ./wheels or under the name in WHEELS." >&2
    exit 2
fi

limit=$((60 * ${MINUTES:-9} - 5))
declare -A seconds=([correctness]=110 [throughput]=140 [large]=170 [optimizers]=35) # the ladder has what is left
[ ${#parts[@]} -gt 0 ] || parts=(correctness throughput large optimizers ladder)
for part in "${parts[@]}"; do
    left=$((limit - SECONDS)) most=${seconds[$part]:-$limit}
    most=$((most < left ? most : left))
    if [ $most -lt 20 ]; then
        echo "$part: no time left"
        continue
    fi
    echo "$part, at most $most s"
    timeout -s KILL $most "$python" "$root/benchmarks/gpu/check.py" "$part" "$out" --seconds $((most - 10)) "${options[@]}" &
    wait $! || failed=$?
    [ $failed != 2 ] || exit 2 # of what was typed, or no GPU
done
exit $failed
