# SPDX-License-Identifier: Apache-2.0
"""A chain of a prompt and a quantized chat model.

python examples/langchain_chat.py HuggingFaceTB/SmolLM2-135M-Instruct "What is a CPU?"
"""

from __future__ import annotations

import argparse

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

import woq
from langchain_woq import ChatWoq


def main() -> None:
    parser = argparse.ArgumentParser(description="ask a quantized model under LangChain")
    parser.add_argument("model", help="a folder, or an id on the hub")
    parser.add_argument("question")
    options = parser.parse_args()

    chat = ChatWoq(
        model=options.model,
        quantization_config=woq.WeightOnlyQuantConfig("nf4", compute_dtype="auto"),
        temperature=0,
        max_tokens=40,
    )
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Answer briefly."), ("human", "{question}")]
    )
    chain = prompt | chat | StrOutputParser()
    for piece in chain.stream({"question": options.question}):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
