#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# build_docs.sh: the documentation site, into build/docs/html. Every warning is an error: a link
# that leads nowhere, a page that no other page lists, a docstring that cannot be parsed.
. "$(dirname "$0")/common.sh"

say "building the documentation"
# Pages are made from headers and docstrings, whose changes Sphinx does not see: always from scratch.
python -m sphinx -W --keep-going -q -E -b html docs build/docs/html
say "documentation: build/docs/html/index.html"
