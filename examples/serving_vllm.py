"""What each request costs on a vLLM server of your own, what idles, and what a token costs; with the openai client that you have.

Set VLLM_URL=http://localhost:8000 to use a real one. Without it a stand-in on loopback answers as vLLM's OpenAI-compatible server does, with
`usage` in its answers and counters on `/metrics`; no GPU is needed.
"""

import json
import os
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import openai

import aifinops as af
from aifinops import gpu
from aifinops.gpu.serving import per_token, read_counters

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


class StandIn(BaseHTTPRequestHandler):
    """Writes as many tokens as it may, half a millisecond each, and counts like vLLM."""

    protocol_version = "HTTP/1.1"
    counts: ClassVar = {"prompt_tokens": 0, "generation_tokens": 0, "prefix_cache_hits": 0, "request_success": 0}
    lock = threading.Lock()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt, output = len(body["messages"][0]["content"].split()), body["max_tokens"]
        time.sleep(output * 0.0005)
        cached = prompt // 2
        with self.lock:
            for name, more in zip(self.counts, (prompt, output, cached, 1), strict=True):
                self.counts[name] += more
        usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
        message = {"role": "assistant", "content": "word " * output}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        answer = {
            "id": "cmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [choice],
            "usage": usage,
        }
        self.answer(json.dumps(answer), "application/json")

    def do_GET(self):
        lines = [f'vllm:{name}_total{{model_name="{MODEL}"}} {count}.0' for name, count in self.counts.items()]
        self.answer("\n".join([*lines, 'vllm:num_requests_running{engine="0"} 0.0', ""]), "text/plain")

    def answer(self, text, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def look(url):
    with urllib.request.urlopen(f"{url}/metrics") as page:
        return read_counters(page.read().decode())


def main(url):
    af.init(ledger="memory")
    # Two H100s of this server; with `devices="auto"` those that this process sees, at the price of where it runs.
    with (
        gpu.Serving(MODEL, devices={"NVIDIA H100 80GB HBM3": 2}, price="2.49", team="platform") as server,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        before = look(url)

        def ask(number):
            team = ["search", "support", "support"][number % 3]
            with server.request(team=team) as request:
                answer = client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": "word " * (50 + number)}],
                    max_tokens=20 + 10 * (number % 4),
                )
                request.usage(answer)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(24)))
        time.sleep(0.05)  # nobody asks: this idles, and is paid for all the same
        after = look(url)

    totals = server.totals
    print(af.report(by=["team"]))
    print(
        f"{totals.requests} requests, {totals.idle_share:.0%} of the cost idle, ${totals.usd_per_request:.7f} a request"
    )
    for kind, price in per_token(before, after, totals.cost).items():
        print(f"${price:.4f} for a million {kind} tokens, idle time in it")
    assert totals.requests == 24
    assert 0 < totals.idle_cost < totals.cost
    assert after.output - before.output == totals.output


if __name__ == "__main__":
    if "VLLM_URL" in os.environ:
        main(os.environ["VLLM_URL"])
    else:
        stand_in = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
        stand_in.daemon_threads = True
        thread = threading.Thread(target=stand_in.serve_forever, args=(0.05,))
        thread.start()
        main(f"http://127.0.0.1:{stand_in.server_address[1]}")
        stand_in.shutdown()
        thread.join()
        stand_in.server_close()
