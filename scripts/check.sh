#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check.sh [--fix]: format, lint, types, include rules, leaked instructions. All steps run, then the
# failed ones are listed. With --fix the formatters write instead.
. "$(dirname "$0")/common.sh"

mapfile -t cpp_files < <(find include src python tests benchmarks examples -name '*.h' -o -name '*.cc' -o -name '*.c' | sort)
python_paths=(python scripts tests benchmarks examples docs/conf.py)

if [ "${1:-}" = --fix ]; then
  clang-format -i "${cpp_files[@]}"
  ruff check --fix "${python_paths[@]}" || true  # make check shows what is left
  ruff format "${python_paths[@]}"
  exit 0
fi

failed=()
step() {
  local name=$1
  shift
  say "$name"
  "$@" || failed+=("$name")
}

step clang-format clang-format --dry-run -Werror "${cpp_files[@]}"
step "ruff check" ruff check "${python_paths[@]}"
step "ruff format" ruff format --check "${python_paths[@]}"
step mypy mypy
step "include rules" python scripts/check_includes.py
step "formulas in comments" python scripts/check_comments.py
step "documentation" python scripts/check_docs.py
step "leaked instructions" python scripts/check_symbols.py

[ ${#failed[@]} -eq 0 ] || die "make check failed: $(IFS=,; echo "${failed[*]}")"
say "make check passed"
