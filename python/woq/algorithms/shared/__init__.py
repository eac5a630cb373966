# SPDX-License-Identifier: Apache-2.0
"""What several algorithms are made of.

- finished: a quantized layer, as the algorithms hand it over
- scaled: multipliers of the input channels, which AWQ and TEQ find
- tuned_rounding: the rounding of a weight as a function with parameters, which AutoRound tunes
"""
