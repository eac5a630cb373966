# SPDX-License-Identifier: Apache-2.0
"""Answers to many prompts, on all machines of a Ray cluster: one model on each machine, or on each
NUMA node of one, that computes on the cores which Ray has given it.

    pip install 'woq[transformers]' 'ray[data]'
    python ray_batch.py MODEL prompts.jsonl answers --actors 16 --threads 31

Each line of prompts.jsonl is an object with a "prompt"; what else it has comes back beside the
answer. The folder `answers` gets files of such lines. MODEL is whatever woq.pipeline takes, and
must be there on every machine: a folder that all see, or an id on the hub.
"""

import argparse
import os
import socket

import ray


class Answerer:
    """One actor: loads the model once, and answers batch after batch."""

    def __init__(self, model: str, threads: int, max_new_tokens: int) -> None:
        import torch

        import woq

        torch.set_num_threads(threads)  # woq's kernels compute on as many
        self.pipe = woq.pipeline("text-generation", model)
        self.max_new_tokens = max_new_tokens
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def __call__(self, batch):
        prompts = [str(prompt) for prompt in batch["prompt"]]
        answers = self.pipe(prompts, max_new_tokens=self.max_new_tokens, return_full_text=False)
        batch["answer"] = [records[0]["generated_text"] for records in answers]
        batch["actor"] = [self.name] * len(prompts)
        return batch


def main() -> None:
    parser = argparse.ArgumentParser(description="Answers to many prompts, by Ray Data.")
    parser.add_argument("model")
    parser.add_argument("prompts", help="a .jsonl file, or a folder of such")
    parser.add_argument("answers", help="the folder to write")
    parser.add_argument("--actors", type=int, default=1, help="models in the whole cluster")
    parser.add_argument("--threads", type=int, default=1, help="cores of each")
    parser.add_argument("--batch-size", type=int, default=16, help="prompts that run as one batch")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    options = parser.parse_args()

    # Blocks of about a batch, so that no actor waits for another's. An actor takes as many CPUs
    # of Ray's as it has threads: no two compute on the same cores.
    prompts = ray.data.read_json(options.prompts, lines=True)
    blocks = max(options.actors, prompts.count() // options.batch_size)
    answers = prompts.repartition(blocks).map_batches(
        Answerer,
        fn_constructor_args=(options.model, options.threads, options.max_new_tokens),
        batch_size=options.batch_size,
        num_cpus=options.threads,
        compute=ray.data.ActorPoolStrategy(size=options.actors),
    )
    answers.write_json(options.answers)


if __name__ == "__main__":
    main()
