# SPDX-License-Identifier: Apache-2.0
"""What a quantization did to a model, as figures and as a page.

- evaluation: `woq.evaluate`
- inspection: facts and sizes of a model's layers
- page: `woq.write_report`, with the template page.html
- plots, table: the plots of that page, and its tables
"""
