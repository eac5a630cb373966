# SPDX-License-Identifier: Apache-2.0
"""`python -m woq`: the command line `woq`."""

from woq.cli import main

main()
