# SPDX-License-Identifier: Apache-2.0
"""LangChain integration of woq: weight-only quantized language models on CPUs."""

from langchain_woq._version import __version__
from langchain_woq.chat_models import ChatWoq
from langchain_woq.embeddings import WoqEmbeddings
from langchain_woq.llms import WeightOnlyQuantPipeline

__all__ = ["ChatWoq", "WeightOnlyQuantPipeline", "WoqEmbeddings", "__version__"]
