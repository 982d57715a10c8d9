"""What a `transformers` pipeline costs, request by request; a tiny model with random weights, made here, so nothing is downloaded.

It needs transformers and torch: `pip install transformers torch`. Without them it says so and ends.
"""

import importlib.util
import sys

if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
    print("This example needs transformers and torch: pip install transformers torch")
    sys.exit(0)

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, pipeline

import aifinops as af
from aifinops import gpu

WORDS = ["<end>", "<unknown>", "a", "question", "about", "gpus", "cost", "hour"]


def tiny():
    """A text generator of a few thousand parameters."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(dict.fromkeys(WORDS))}, "<unknown>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", pad_token="<end>", unk_token="<unknown>"
    )
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, eos_token_id=0, bos_token_id=0
    )
    return pipeline("text-generation", model=GPT2LMHeadModel(shape), tokenizer=tokenizer, device="cpu")


def main():
    af.init(ledger="memory")
    generate = tiny()

    def answer(server, question, customer):
        with server.request(customer=customer) as request:
            [made] = generate(question, max_new_tokens=8, min_new_tokens=8, do_sample=False, return_tensors=True)
            prompt = len(generate.tokenizer(question)["input_ids"])
            request.tokens(prompt=prompt, output=len(made["generated_token_ids"]) - prompt)

    # On a machine with a GPU leave `devices` and `price` out: what this process sees, at the price of where it runs.
    with gpu.Serving("tiny-gpt2", devices={"NVIDIA L4": 1}, price="0.80", team="platform") as server:
        for number in range(6):
            answer(server, "a question about gpus", ["acme", "umbrella"][number % 2])
    totals = server.totals
    print(af.report(by=["customer"]))
    print(
        f"{totals.requests} requests, {totals.output} tokens written, ${totals.cost:.8f}, {totals.idle_share:.0%} of it idle"
    )
    assert (totals.requests, totals.output, totals.prompt) == (6, 48, 24)
    assert 0 < totals.idle_cost < totals.cost


if __name__ == "__main__":
    main()
