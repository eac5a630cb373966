# SPDX-License-Identifier: Apache-2.0
"""LangChain's standard tests of embeddings, on MiniLM with int8 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import woq
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_woq import WoqEmbeddings


class _MiniLM:
    @pytest.fixture(autouse=True)
    def _folder(self, minilm: Path) -> None:
        self.folder = minilm

    @property
    def embeddings_class(self) -> type[WoqEmbeddings]:
        return WoqEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        config = woq.WeightOnlyQuantConfig(weight_dtype="int8")
        return {"model": str(self.folder), "quantization_config": config}


class TestWoqEmbeddingsUnit(_MiniLM, EmbeddingsUnitTests):
    pass


class TestWoqEmbeddingsIntegration(_MiniLM, EmbeddingsIntegrationTests):
    pass
