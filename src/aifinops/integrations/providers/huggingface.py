"""Hugging Face's inference client. Who serves a model decides its price: the router's path says who, or else the host.

https://huggingface.co/docs/inference-providers. Chat and completions answer in OpenAI's form. Text generation tells counts only where
details were asked for, and never those of the prompt of an answer that is not streamed; feature extraction tells none, so both are
estimated. `hf-inference` and endpoints of one's own are billed by the time of a machine, so tokens have no price there. Requests that
carry bytes (sound, pictures) are not metered. The Hub is reached through the same connection, and has paths with `/models/` that are no
calls of a model.
"""

from __future__ import annotations

from dataclasses import replace

from aifinops.integrations.provider import Provider, Route
from aifinops.integrations.providers.openai import CHAT, COMPLETIONS, EMBEDDINGS

_GENERATION = Route(
    "text_completion", {"input_tokens": "details.input_length", "output_tokens": "details.generated_tokens"},
    ("generated_text", "details.generated_tokens"), text=("generated_text", "token.text"), limits=("parameters.max_new_tokens",),
    choices="parameters.best_of", response_id="", created="", tier="",
    finish="details.finish_reason", raw="",
)  # fmt: skip
_FEATURES = Route("embeddings", {}, ("usage", "vectors"), response_id="", created="", tier="", raw="")

SERVERS = (
    "baseten", "cerebras", "cohere", "deepinfra", "featherless-ai", "fireworks-ai", "groq", "hyperbolic", "nebius", "novita", "nscale",
    "ovhcloud", "publicai", "sambanova", "scaleway", "together", "zai-org",
)  # fmt: skip

HUGGINGFACE = Provider(
    "huggingface",
    module="huggingface_hub",
    package="huggingface_hub",
    minimum="1.0",
    seam="http",
    hosts={
        **{f"router.huggingface.co/{name}": f"huggingface_{name}" for name in SERVERS},
        "api.together.xyz": "together", "api.groq.com": "groq", "api.cerebras.ai": "cerebras", "api.fireworks.ai": "fireworks",
        "api.cohere.com": "cohere", "api.openai.com": "openai", "api.novita.ai": "novita", "api.z.ai": "zai",
    },
    senders={
        "huggingface_hub.inference._client:get_session": "()",
        "huggingface_hub.inference._generated._async_client:AsyncInferenceClient._get_async_client": "()",
    },
    routes={
        "/chat/completions": CHAT,
        "/completions": COMPLETIONS,
        "/embeddings": EMBEDDINGS,
        "/hf-inference/models/*/pipeline/feature-extraction": _FEATURES,
        "/hf-inference/models/*/pipeline/sentence-similarity": _FEATURES,
        "/hf-inference/models/*": _GENERATION,
        "/": _GENERATION,  # an endpoint of one's own
        "object of the library": replace(CHAT, signs=("choices", "usage")),  # which leaves out what it is
    },
)  # fmt: skip
