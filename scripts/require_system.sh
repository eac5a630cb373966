#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# require_system.sh GROUP...: makes sure that the machine has what a group needs. As root on Debian
# or Ubuntu the missing packages are installed; otherwise one line says what to install. A package
# that a group only makes use of (`want`) is no reason to stop: one line says what is left out.
. "$(dirname "$0")/common.sh"

CLANG=${CLANG:-clang-16}
missing=() wanted=()

# need PROBE PACKAGE...: the packages are missing unless the probe, a shell command, succeeds.
need() {
  local probe=$1
  shift
  bash -c "$probe" >/dev/null 2>&1 || missing+=("$@")
}

# want PROBE PACKAGE WHAT: likewise, but without the package WHAT is left out.
want() {
  bash -c "$1" >/dev/null 2>&1 || wanted+=("$2 ($3)")
}

header() { printf 'echo "#include <%s>" | g++ -E -x c++ -' "$1"; }

want_onednn() {
  want "$(header oneapi/dnnl/dnnl.hpp)" libdnnl-dev 'target onednn'
  want "$(header CL/cl.h)" ocl-icd-opencl-dev "libdnnl-dev's CMake package asks for it"
}

need_group() {
  case $1 in
    python)
      python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "Python >= 3.10 is needed; $(python3 --version) was found"
      need 'python3 -c "import ensurepip, venv"' python3-venv
      need 'test -e "$(python3 -c "import sysconfig; print(sysconfig.get_path(\"include\"))")/Python.h"' \
        python3-dev
      need 'command -v g++' g++
      ;;
    tests)
      need "$(header gtest/gtest.h)" libgtest-dev
      need 'test -e /usr/share/eigen3/cmake/Eigen3Config.cmake' libeigen3-dev
      want_onednn
      ;;
    benchmarks)
      need "$(header benchmark/benchmark.h)" libbenchmark-dev
      want_onednn
      ;;
    clang)
      need "command -v $CLANG" "$CLANG"
      need "echo 'int main() {}' | $CLANG -fopenmp -x c++ - -o /dev/null" "libomp-${CLANG#clang-}-dev"
      need "echo 'int main() {}' | $CLANG -fsanitize=thread -x c++ - -o /dev/null" \
        "libclang-rt-${CLANG#clang-}-dev"
      ;;
    emulation)
      need 'command -v bochs' bochs bochsbios vgabios bochs-term
      need 'test -e /usr/lib/ISOLINUX/isolinux.bin' isolinux
      need 'test -e /usr/lib/syslinux/modules/bios/mboot.c32' syslinux-common
      need 'command -v xorriso' xorriso
      ;;
    cross)
      need 'command -v aarch64-linux-gnu-g++' g++-aarch64-linux-gnu
      ;;
    *) die "require_system.sh: unknown group '$1'" ;;
  esac
}

for group in "$@"; do need_group "$group"; done
[ ${#missing[@]} -gt 0 ] || [ ${#wanted[@]} -gt 0 ] || exit 0

install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; }

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  say "apt-get install ${missing[*]} ${wanted[*]%% *}"
  apt-get update -qq || [ ${#missing[@]} -eq 0 ]
  [ ${#missing[@]} -eq 0 ] || install "${missing[@]}"
  for package in "${wanted[@]}"; do
    install "${package%% *}" || echo "LEFT OUT: $package: the package cannot be installed"
  done
  exit 0
fi
for package in "${wanted[@]}"; do echo "LEFT OUT: sudo apt-get install $package"; done
if [ ${#missing[@]} -gt 0 ]; then
  die "this step needs: sudo apt-get install ${missing[*]}"
fi
