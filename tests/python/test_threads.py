# SPDX-License-Identifier: Apache-2.0
"""One pool of threads for torch and woq; calls from several Python threads; fork."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

import pytest
import torch
from model_support import last_json, run_python, seed
from torch import nn

import woq
from woq import WeightOnlyLinear

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux' /proc")

COUNT = """
import json, os
{imports}
torch.set_num_threads({threads})
def count():
    return len(os.listdir("/proc/self/task"))
start = count()
x = torch.randn(512, 512)
for _ in range(3):
    x @ x
    torch.nn.functional.gelu(torch.randn(1 << 20))
after_torch = count()
layer = woq.WeightOnlyLinear.from_quantized(woq.quantize_rtn(torch.randn(1024, 512), dtype="nf4"))
for rows in (1, 3, 64):
    with torch.no_grad():
        layer(torch.randn(rows, 512))
after_woq = count()
print(json.dumps([start, after_torch, after_woq, torch.get_num_threads()]))
"""


CORE_FIRST = """
import numpy, woq
woq.quantize_rtn(numpy.ones((256, 256), "f"), dtype="int8", num_threads=2)
import torch"""


@pytest.mark.parametrize(
    ("imports", "threads"),
    [
        ("import torch, woq", 1),
        ("import torch, woq", 4),
        ("import woq, torch", 2),
        (CORE_FIRST, 2),
    ],
    ids=["torch-first-1", "torch-first-4", "woq-first", "core-used-first"],
)
def test_no_second_pool(imports, threads):
    process = run_python(COUNT.format(imports=imports, threads=threads))
    _, after_torch, after_woq, held = last_json(process)
    assert after_woq <= after_torch, "woq started threads beside torch's"
    assert held == threads


ROWS, COLS = 300, 512  # one row of input is worth a thread, two are worth two


def make(compute_dtype="fp32"):
    weight = torch.randn(ROWS, COLS)
    return WeightOnlyLinear.from_quantized(
        woq.quantize_rtn(weight, dtype="int4_clip"), torch.ones(ROWS), compute_dtype=compute_dtype
    )


def others_work(run):
    """Whether another thread of this process takes part in `run()`. The counts of a process and of
    its calling thread differ by what the others did; an idle pool does nothing."""
    for _ in range(200):
        process, thread = time.process_time(), time.thread_time()
        for _ in range(20):
            run()
        own = time.thread_time() - thread
        if time.process_time() - process - own > own / 4:
            return True
    return False


@pytest.mark.parametrize("compute", ["eager", "gradient"])
def test_four_threads_at_once(compute, request):
    seed(request)
    layers = [make() for _ in range(3)]
    inputs = [torch.randn(rows, COLS) for rows in (1, 2, 7, 33)]
    expected = [[layer(x) for layer in layers] for x in inputs]
    wrong, start = [], threading.Barrier(4)

    def work(index):
        start.wait()
        x = inputs[index].clone().requires_grad_(compute == "gradient")
        for _ in range(25):
            for number, layer in enumerate(layers):
                y = layer(x)
                if compute == "gradient":
                    y.sum().backward()
                if not torch.equal(y.detach(), expected[index][number]):
                    wrong.append((index, number))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "deadlock"
    assert not wrong


@pytest.mark.parametrize("compute_dtype", ["fp32", "bf16", "int8"])
def test_results_do_not_depend_on_the_thread_count(compute_dtype, request):
    seed(request)
    model = nn.Sequential(make(compute_dtype))
    inputs = [torch.randn(rows, COLS) for rows in (2, 4, 5, 6, 7, 9, 12, 40)]
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            results.append([model(x) for x in inputs])
            assert torch.get_num_threads() == count
        torch.set_num_threads(2)
        assert others_work(lambda: model(inputs[-1])), "one thread did it all: the test is void"
    finally:
        torch.set_num_threads(before)
    for result in results:
        for x, y, expected in zip(inputs, result, results[0], strict=True):
            assert torch.equal(y, expected), f"{len(x)} rows"


def _child(layer, x, queue):
    # More than one element per thread, so that a team is needed.
    queue.put(layer(x).sum(1).tolist())


def test_after_fork(request):
    seed(request)
    layer, x = make(), torch.randn(64, COLS)
    expected = layer(x).sum(1).tolist()  # starts the pool in the parent
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_child, args=(layer, x, queue))
    process.start()
    try:
        assert queue.get(timeout=60) == pytest.approx(expected)
    finally:
        process.join(10)
        if process.is_alive():
            process.kill()
            pytest.fail("the child hangs")
    assert process.exitcode == 0
    assert layer(x).sum(1).tolist() == expected


FORK_BEFORE_THE_FIRST_CALL = """
import json, os, sys, time
import numpy, torch, woq
torch.set_num_threads(2)
torch.randn(1 << 22).exp()  # starts the pool that woq shares
child = os.fork()
if child == 0:
    weight = numpy.random.default_rng(0).standard_normal((1024, 1024)).astype("float32")
    woq.quantize_rtn(weight, dtype="nf4", num_threads=2)
    os._exit(0 if woq.cpu_info()["forked_child"] else 1)
end = time.monotonic() + 60
while time.monotonic() < end:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
    time.sleep(0.02)
else:
    os.kill(child, 9)
    os.waitpid(child, 0)
    sys.exit("the child hangs")
print(json.dumps([os.waitstatus_to_exitcode(status), woq.cpu_info()["forked_child"]]))
"""


def test_a_forked_child_may_be_the_first_to_call():
    """woq is imported, and torch has computed, before the fork; nothing of woq has been called."""
    assert last_json(run_python(FORK_BEFORE_THE_FIRST_CALL)) == [0, False]


def test_gil_is_released():
    layer = WeightOnlyLinear.from_quantized(
        woq.quantize_rtn(torch.randn(1024, 1024), dtype="nf4"), name="big"
    )
    x = torch.randn(4096, 1024)
    running, finished = threading.Event(), threading.Event()
    spent = []

    def run():
        began = time.thread_time()
        running.set()
        for _ in range(3):
            layer(x)
        spent.append(time.thread_time() - began)
        finished.set()

    thread = threading.Thread(target=run)
    thread.start()
    running.wait(60)
    began = time.thread_time()
    while not finished.is_set():
        pass
    looped = time.thread_time() - began
    thread.join(60)
    # The loop runs beside the calls if they release the lock. If they held it, the loop would run
    # between them only, for a switch interval of 5 ms each, and a call takes some 50 ms. Times are
    # the processor's, so that a busy machine slows both threads alike.
    assert looped > spent[0] / 4, f"the loop had {looped:.4f} s, the calls {spent[0]:.4f} s"
