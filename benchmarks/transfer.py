"""How fast state moves from one process to another, straight into the memory where it will live.

Run: python benchmarks/transfer.py [gigabytes]
"""

from __future__ import annotations

import argparse
import multiprocessing
import threading
import time
from multiprocessing.connection import Connection

LAYERS = 8


def serve(pipe: Connection, floats: int) -> None:
    """Serve LAYERS layers of so many values until the pipe closes."""
    import torch

    from runtime.engine.state import bytes_of
    from runtime.engine.transfer import StateServer

    buffers = [torch.full((3, floats), float(index)) for index in range(LAYERS)]
    server = StateServer("127.0.0.1", lambda point: None)
    server.publish(1, {index: lambda index=index: bytes_of(buffers[index]) for index in range(LAYERS)})
    pipe.send(server.address.port)
    pipe.poll(None)


def copied(address: object, floats: int) -> float:
    """Seconds that a copy ahead takes, snapshots and rests included."""
    import torch
    from torch import nn

    from runtime.engine.ahead import AheadCopy
    from runtime.engine.state import LayerState
    from runtime.engine.transfer import Address

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(floats, device="meta"))

    done = threading.Event()
    assert isinstance(address, Address)
    began_s = time.perf_counter()
    copy = AheadCopy(
        1,
        dict.fromkeys(range(LAYERS), address),
        b"\0" * 16,
        lambda index: LayerState(index, Flat(), True, torch.device("cpu")),
        lambda layer, step, gradient: None,
        lambda point: None,
        lambda size_bytes, seconds: done.set(),
    )
    if not done.wait(120):
        raise TimeoutError("the copy has not come in 120 s")
    took_s = time.perf_counter() - began_s
    copy.stop()
    return took_s


def main() -> None:
    """Print the speeds in GB/s."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gigabytes", type=float, nargs="?", default=1.0)
    gigabytes = parser.parse_args().gigabytes
    import torch

    from runtime.engine import transfer
    from runtime.engine.state import bytes_of
    from runtime.engine.transfer import Address

    torch.set_num_threads(1)
    floats = int(gigabytes * 1e9 / LAYERS / 12)
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, floats), daemon=True)
    process.start()
    address = Address("127.0.0.1", ours.recv())
    size_gb = LAYERS * floats * 12 / 1e9
    print(f"{size_gb:.2f} GB in {LAYERS} layers between two processes over loopback, best of 3, GB/s")
    views = {index: bytes_of(torch.zeros(3, floats).fill_(-1.0)) for index in range(LAYERS)}
    most = transfer._STREAMS
    for streams in (1, 2, most):
        transfer._STREAMS = streams
        best_s = float("inf")
        for _ in range(3):
            began_s = time.perf_counter()
            wanted = [(index, address) for index in range(LAYERS)]
            transfer.fetch_layers(1, wanted, views, b"\0" * 16, lambda point: None)
            best_s = min(best_s, time.perf_counter() - began_s)
        print(f"  at the switch, {streams} streams {size_gb / best_s:8.2f}")
    best_s = min(copied(address, floats) for _ in range(3))
    print(f"  copied ahead, paced       {size_gb / best_s:8.2f}")
    ours.close()
    process.terminate()
    process.join(10)


if __name__ == "__main__":
    main()
