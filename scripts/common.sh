# SPDX-License-Identifier: Apache-2.0
# Sourced by the other scripts: strict mode, the checkout as working directory, shared settings.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
WERROR=${WERROR:-OFF}
JOBS=${JOBS:-$(nproc)}

# Pinned, and not in pyproject.toml's groups: a plain "torch" may pull several GB of CUDA libraries.
# Where only such builds are found, point pip at CPU wheels (PIP_EXTRA_INDEX_URL) or set this.
TORCH_REQUIREMENT=${TORCH_REQUIREMENT:-torch==2.13.0}

# cmake and ninja come from pip, so that the distribution's age doesn't matter.
PATH=$PWD/$VENV/bin:$PATH

say() { printf '\n== %s\n' "$*"; }
die() {
  printf 'woq: %s\n' "$*" >&2
  exit 1
}
