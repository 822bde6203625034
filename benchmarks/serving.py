"""`study serve` under load beside `mlflow models serve`: the same model, the same real images, eight clients.

    python benchmarks/serving.py models:/patchcore_screw@champion IMAGES... --out benchmarks/results/serving.json

Both run on this machine with STUDY_HOME's registry, by turns, each alone; each client keeps one connection and sends one image
at a time, for `--seconds`. Then `--hostile` requests (truncated images, 100-megapixel headers, wrong types, large bodies, path
names, deep JSON) go to ours, and the registry's champion is swapped under load where it has a `previous`. MLflow's server takes
JSON with base64 alone; ours gets the files as multipart.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests

from studies.home import Home

Ask = Callable[[requests.Session, bytes], requests.Response]
START_SECONDS = 180.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def running(command: Sequence[str], ready: str, **environment: str) -> Iterator[psutil.Process]:
    """A server, from its first answer on `ready` until the block ends."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        command,
        env={**os.environ, "PATH": path, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if requests.get(ready, timeout=5).status_code == 200:
                    break
            except requests.RequestException:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{' '.join(command)} did not come up")
            time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def load(ask: Ask, images: Sequence[bytes], *, clients: int, seconds: float) -> dict[str, Any]:
    """Requests per second and times of answers, with every client busy."""
    times: list[float] = []
    codes: Counter[str] = Counter()
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        session, turn = requests.Session(), number
        while time.monotonic() < end:
            begin = time.perf_counter()
            try:
                codes[str(ask(session, images[turn % len(images)]).status_code)] += 1
            except requests.RequestException as error:
                codes[type(error).__name__] += 1
            times.append(time.perf_counter() - begin)
            turn += 1

    ask(requests.Session(), images[0])  # what is done once at the first request
    begin = time.monotonic()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - begin
    return {
        "requests": len(times),
        "per_second": round(len(times) / took, 1),
        "p50_ms": round(1000 * statistics.median(times), 1),
        "p95_ms": round(1000 * float(np.quantile(times, 0.95)), 1),
        "answers": dict(codes),
    }


def multipart(address: str) -> Ask:
    return lambda session, data: session.post(f"{address}/predict", files={"file": data}, timeout=60)


def invocations(address: str) -> Ask:
    def ask(session: requests.Session, data: bytes) -> requests.Response:
        body = {"inputs": [{"image": base64.b64encode(data).decode(), "return_heatmap": False}]}
        return session.post(f"{address}/invocations", json=body, timeout=60)

    return ask


def hostile(address: str, image: bytes, count: int) -> Counter[str]:
    """Codes of the answers to requests that nobody should send."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    as_json = {"Content-Type": "application/json"}
    kinds: list[dict[str, Any]] = [
        {"files": {"file": image[: len(image) // 2]}},
        {"files": {"file": bomb}},
        {"files": {"file": b"no image"}},
        {"files": {"file": ("../../etc/passwd", b"x")}},
        {"data": b"[" * 200_000, "headers": as_json},
        {"data": bytes(50_000_000), "headers": as_json},
        {"json": {"images": ["no base64!"]}},
        {"json": {"images": [1, 2]}},
        {"data": "text", "headers": {"Content-Type": "text/plain"}},
        {"files": [("f", (f"{number}.png", image)) for number in range(40)]},
    ]
    codes: Counter[str] = Counter()
    for number in range(count):
        try:
            codes[str(requests.post(f"{address}/predict", timeout=60, **kinds[number % len(kinds)]).status_code)] += 1
        except requests.RequestException as error:
            codes[type(error).__name__] += 1
    return codes


def swap_under_load(model: str, address: str, images: Sequence[bytes], clients: int) -> dict[str, Any] | None:
    """`study rollback`, twice, in the midst of requests; None where there is no version to go back to."""
    name = model.removeprefix("models:/").partition("@")[0]
    back = [sys.executable, "-m", "studies.cli", "rollback", name, "--reason", "a benchmark"]
    done: list[int] = []

    def swap() -> None:
        for _ in range(2):
            time.sleep(3.0)
            done.append(subprocess.run(back, capture_output=True, check=False).returncode)

    thread = threading.Thread(target=swap)
    thread.start()
    found = load(multipart(address), images, clients=clients, seconds=30.0)
    thread.join()
    return found if done == [0, 0] else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--hostile", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    images = [path.read_bytes() for path in arguments.images]
    results: dict[str, Any] = {}
    calm = {"OMP_WAIT_POLICY": "PASSIVE"}

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "-m", arguments.model, "--env-manager", "local"]
    with running(
        [*serve, "--port", str(port), "--workers", "1"],
        f"{address}/ping",
        MLFLOW_TRACKING_URI=Home.from_environment().tracking_uri,
        **calm,
    ):
        results["mlflow models serve"] = load(
            invocations(address), images, clients=arguments.clients, seconds=arguments.seconds
        )
        print("mlflow models serve", results["mlflow models serve"], flush=True)

    port = free_port()
    address = f"http://127.0.0.1:{port}"
    ours = [sys.executable, "-m", "studies.cli", "serve", arguments.model, "--port", str(port), "--poll", "0.5"]
    with running(ours, f"{address}/readyz", **calm) as process:
        results["study serve"] = load(multipart(address), images, clients=arguments.clients, seconds=arguments.seconds)
        print("study serve", results["study serve"], flush=True)
        hostile(address, images[0], 20)
        before = process.memory_info().rss
        codes = hostile(address, images[0], arguments.hostile)
        results["hostile"] = {
            "answers": dict(codes),
            "rss_mb_before": round(before / 1e6),
            "rss_mb_after": round(process.memory_info().rss / 1e6),
            "alive": requests.get(f"{address}/readyz", timeout=10).status_code == 200,
        }
        print("hostile", results["hostile"], flush=True)
        results["swapped under load"] = swap_under_load(arguments.model, address, images, arguments.clients)
        print("swapped under load", results["swapped under load"], flush=True)
    results["ratio of requests per second"] = round(
        results["study serve"]["per_second"] / results["mlflow models serve"]["per_second"], 2
    )
    if arguments.out:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        content = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine,
            "model": arguments.model,
            "images": len(images),
            "clients": arguments.clients,
            "results": results,
        }
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
