# SPDX-License-Identifier: Apache-2.0
"""The lowest room: the C++ extension as Python sees it, and what needs nothing else of woq.

- native: loads the extension; every other module takes the core's names from there
- environment: what a bug report says of this machine and its packages
- moved: module paths of earlier releases, which still import
- transformers_private: all of transformers' names with an underscore, in one file
- units: sizes such as "2GB"
"""
