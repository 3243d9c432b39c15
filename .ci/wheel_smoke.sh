#!/usr/bin/env bash
# Build sdist -> wheel, install the wheel in a clean environment, and use it there.
# Set by the Makefile: PYTHON (base interpreter), BUILDER (one with `build` and
# `hatchling`), TORCH (pip's arguments for torch).
set -euo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
builder=$(cd "$(dirname "$BUILDER")" && pwd)/$(basename "$BUILDER")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Without flags, `build` makes the sdist first and the wheel from it.
"$builder" -m build --no-isolation --outdir "$scratch/dist" "$repo" >"$scratch/build.log" 2>&1 ||
    { cat "$scratch/build.log"; exit 1; }
wheel=$(ls "$scratch"/dist/*.whl)

top=$("$builder" - "$wheel" <<'PY'
import sys
import zipfile

names = {name.split("/")[0] for name in zipfile.ZipFile(sys.argv[1]).namelist()}
print(*sorted(name for name in names if not name.endswith(".dist-info")))
PY
)
if [ "$top" != "diffuser_envs diffuser_policy" ]; then
    echo "wheel: wrong top-level names: $top"
    exit 1
fi
echo "wheel: $(basename "$wheel"), $(($(wc -c <"$wheel") / 1024)) KiB, holds $top"

"$PYTHON" -m venv "$scratch/venv"
# shellcheck disable=SC2086  # TORCH may hold several arguments
"$scratch/venv/bin/python" -m pip install --quiet $TORCH "diffuser-policy[maze] @ file://$wheel"
cd "$scratch"
cp "$repo/.ci/wheel_smoke.py" .
venv/bin/python wheel_smoke.py
venv/bin/diffuser-policy --help >/dev/null
