#!/bin/bash
# What a borrowed GPU is for, most important first, in so many minutes and not one more.
#
#   scripts/gpu.sh [MINUTES] [options]      measure what the committed records lack (default 12 minutes); options:
#                                           those of benchmarks/gpu.py, such as --data cifar10=DIR or --device cpu
#   scripts/gpu.sh --pack FROM [SET ...]    prepare build/wheels and build/data for a machine without a network:
#                                           pydantic for its Python, and packed image sets (SET-*.tar.xz) of FROM with
#                                           its unpack.py; default cifar10
#   python benchmarks/gpu_work.py keep OUT  write what came back into benchmarks/results/gpu
#
# Results go to $OUT, or build/gpu. With --pack: PYTHON_VERSION (default 3.12), LIMIT_MIB (default 64, the tree included).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

fail() { echo "gpu.sh: $1" >&2; exit 2; }

pack() {
  from=${1:-}; [ -n "$from" ] || fail "--pack needs the folder of the packed image sets"
  shift
  [ -f "$from/unpack.py" ] || fail "$from has no unpack.py"
  rm -rf build/wheels build/data; mkdir -p build/wheels build/data
  cp "$from/unpack.py" build/data/
  for name in "${@:-cifar10}"; do
    cp "$from/$name"-*.tar.xz build/data/ 2>/dev/null || fail "$from has no $name-*.tar.xz"
  done
  platforms=(); for tag in _2_28 _2_27 _2_17 2014 1; do platforms+=(--platform "manylinux${tag}_x86_64"); done
  "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: -d build/wheels \
    --python-version "${PYTHON_VERSION:-3.12}" --implementation cp "${platforms[@]}" \
    $(grep -E '^(pydantic|pydantic_core|annotated-types|typing-inspection)==' constraints.txt)
  chmod -R u+w build/wheels build/data
  tree=$(git ls-files -z --cached --others --exclude-standard | xargs -0 du -cb --apparent-size 2>/dev/null | tail -1 | cut -f1)
  carried=$(du -cb --apparent-size build/wheels/* build/data/* | tail -1 | cut -f1)
  limit=$((${LIMIT_MIB:-64} << 20))
  echo "working tree $((tree >> 20)) MiB, build/wheels and build/data $((carried >> 20)) MiB, limit $((limit >> 20)) MiB"
  [ $((tree + carried)) -le "$limit" ] || fail "too large together by $(((tree + carried - limit) >> 10)) KiB; pack fewer sets"
}

if [ "${1:-}" = --pack ]; then shift; pack "$@"; exit; fi

minutes=12
if [[ ${1:-} =~ ^[0-9]+(\.[0-9]+)?$ ]]; then minutes=$1; shift; fi
out=${OUT:-build/gpu}
if ! "$python" -c 'import pydantic' 2>/dev/null && ls build/wheels/*.whl >/dev/null 2>&1; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target build/site build/wheels/*.whl
  export PYTHONPATH=$PWD/build/site${PYTHONPATH:+:$PYTHONPATH}
fi
left=$("$python" -c "print(max(0.1, $minutes - $SECONDS / 60))")
# gpu.py ends some seconds before; this is for a gpu.py that does not.
hard=$("$python" -c "print(60 * $left)")
exec timeout --kill-after=5 --signal=INT "$hard" "$python" benchmarks/gpu.py --minutes "$left" --out "$out" "$@"
