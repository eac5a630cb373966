# SPDX-License-Identifier: Apache-2.0
"""AutoRound (github.com/intel/auto-round), exported in its own format and read back from there.

Its recipes, as options: iters=200 is the default one, iters=50 lr=0.005 the light one, iters=1000
with 512 samples the best one. By its default the model is cast to bf16 where the CPU computes in
it; amp=false keeps fp32. Packing is part of the time: it happens as blocks are finished.
"""

from __future__ import annotations

from typing import Any

from . import Made, Task, batches, gptq_weights, grouped_bits

PACKAGE = "auto-round"
FORMATS = ("int4_sym", "int4_asym")
OPTIONS: dict[str, Any] = {
    "iters": 200,
    "lr": None,
    "batch_size": 8,
    "amp": True,
    "enable_alg_ext": False,
    "disable_opt_rtn": False,
}


def quantize(task: Task) -> Made:
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    model, options = task.model(), task.options
    asym = task.format == "int4_asym"
    bits = grouped_bits(model, task.group_size, 4, 4 if asym else 0)
    known = {name: options[name] for name in ("lr", "enable_alg_ext", "disable_opt_rtn")}
    with task.measured():
        AutoRound(
            model,
            AutoTokenizer.from_pretrained(task.protocol),
            scheme="W4A16",
            bits=4,
            group_size=task.group_size,
            sym=not asym,
            iters=options["iters"],
            nsamples=len(task.samples),
            seqlen=task.samples.shape[1],
            batch_size=options["batch_size"],
            dataset=batches(task.samples, 1),
            seed=task.seed,
            amp=options["amp"],
            device_map="cpu",
            **{name: value for name, value in known.items() if value},
        ).quantize_and_save(str(task.scratch), format="auto_round:auto_gptq")
    return Made(gptq_weights(task.scratch), bits)
