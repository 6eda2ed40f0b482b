#!/usr/bin/env bash
# Installs Detectron2 and lvis into the environment of the given Python from the package index alone.
# A Detectron2 that is already there, such as one built as its own install page says, is left alone; on another
# processor than x86-64 that is the way to get it.
#
#   tools/install_detectron2.sh [PYTHON]
set -euo pipefail

python=${1:-python}
requirements=$(cd "$(dirname "$0")/../requirements" && pwd)

has() { "$python" -c "import $1" 2>/dev/null; }

if ! has detectron2; then
    "$python" -m pip install -r "$requirements/detectron2-dependencies.txt"
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # The wheel is tagged for Python 3.10 because of one compiled file. Without that file it is pure Python and serves
    # every version: hence the pinned tag, the target folder (which lets pip accept it) and the removal below.
    "$python" -m pip install --no-deps --require-hashes --only-binary=:all: --python-version 3.10 \
        --target "$site" -r "$requirements/detectron2.txt"
    rm -f "$site"/detectron2/_C.*.so
    rm -rf "$site/tools" # a stray top-level package of the wheel, which would shadow our tools/
fi

# Alone, since its requirements bring a second OpenCV.
has lvis || "$python" -m pip install --no-deps lvis==0.5.3

"$python" -W ignore -c 'import detectron2.model_zoo, lvis' # fails here rather than in the middle of a run
