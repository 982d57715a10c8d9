"""litellm, which speaks to many providers in one form. What is charged is every physical call that a provider answered, exactly once.

It sends by its own handlers of httpx or by the openai client that it holds; both are seen where they send. So a call that litellm
tries again, or gives to another model after a failure, is one row for each answer that was paid for, of the provider and in the words
of the provider, which litellm's own answer no longer has (times of written caches, served tiers, tools). Bedrock is asked by Converse or by
InvokeModel, and streams in frames. A request that the provider
refused is none, and so is an answer out of litellm's cache or a mocked one. Where the openai library is metered as well, the call is
its row and not a second one here. What litellm sends by neither (boto3, a handler of one's own) is left to the integration of that.

The outermost functions are wrapped only so that `BudgetExceeded` comes out as itself: litellm would make an error of a provider of it.
"""

from __future__ import annotations

from dataclasses import replace

from aifinops.integrations.provider import Provider
from aifinops.integrations.providers.anthropic import MESSAGE
from aifinops.integrations.providers.bedrock import BEDROCK
from aifinops.integrations.providers.cohere import COHERE
from aifinops.integrations.providers.google import GOOGLE
from aifinops.integrations.providers.mistral import MISTRAL
from aifinops.integrations.providers.ollama import OLLAMA
from aifinops.integrations.providers.openai import CHAT, COMPLETIONS, EMBEDDINGS, OPENAI, RESPONSES

_INVOKE, _STREAMED = BEDROCK.routes["InvokeModel"], BEDROCK.routes["ConverseStream"]
_GEMINI = GOOGLE.routes["generateContent"]
_HANDLERS = "litellm.llms.custom_httpx.http_handler"
_FUNCTIONS = (
    "completion",
    "text_completion",
    "embedding",
    "responses",
    "rerank",
    "image_generation",
    "transcription",
    "speech",
    "moderation",
)

LITELLM = Provider(
    "litellm",
    module="litellm",
    package="litellm",
    minimum="1.60",
    seam="http",
    hosts={
        **OPENAI.hosts, **COHERE.hosts, **MISTRAL.hosts, "api.anthropic.com": "anthropic", "api.cohere.com": "cohere",
        ".googleapis.com": "gcp.vertex_ai", ".amazonaws.com": "aws.bedrock", "api.cerebras.ai": "cerebras",
    },
    speaks={
        "/v1/messages": "anthropic", "/models/*:generateContent": "gcp.gemini", "/models/*:streamGenerateContent": "gcp.gemini",
        **dict.fromkeys(
            (
                "/model/*/converse", "/model/*/converse-stream", "/model/*/invoke", "/model/*/invoke-with-response-stream",
                "/model/*embed*/invoke",
            ), "aws.bedrock",
        ),
        "/ocr": "mistral_ai",
        **dict.fromkeys(("/api/chat", "/api/generate", "/api/embed"), "ollama"),
        **dict.fromkeys(("/v1/chat", "/v2/chat", "/v1/embed", "/v2/embed", "/v1/rerank", "/v2/rerank"), "cohere"),
        **dict.fromkeys(("/chat/completions", "/completions", "/embeddings", "/responses"), "openai"),
    },
    senders={
        f"{_HANDLERS}:HTTPHandler.post": "client",
        f"{_HANDLERS}:AsyncHTTPHandler.post": "client",
        f"{_HANDLERS}:AsyncHTTPHandler.create_client": "()",
        "litellm.llms.openai.openai:OpenAIChatCompletion._get_openai_client": "()._client",
        "litellm.llms.azure.common_utils:BaseAzureLLM.get_azure_openai_client": "()._client",
    },
    outermost=tuple(f"litellm:{prefix}{name}" for name in _FUNCTIONS for prefix in ("", "a")),
    routes={
        "/chat/completions": CHAT, "/completions": COMPLETIONS, "/embeddings": EMBEDDINGS, "/responses": RESPONSES,
        "/v1/messages": MESSAGE,
        "/models/*:generateContent": _GEMINI, "/models/*:streamGenerateContent": _GEMINI,
        "/model/*/converse": replace(BEDROCK.routes["Converse"], response_id=""), "/model/*/converse-stream": _STREAMED,
        "/model/*/invoke": _INVOKE, "/model/*/invoke-with-response-stream": _INVOKE,
        "/model/*embed*/invoke": BEDROCK.routes["InvokeModel embed"],
        "/ocr": MISTRAL.routes["/ocr"],
        **{path: COHERE.routes[path] for path in ("/v1/chat", "/v2/chat", "/v1/embed", "/v2/embed", "/v1/rerank", "/v2/rerank")},
        **{path: OLLAMA.routes[path] for path in ("/api/chat", "/api/generate", "/api/embed")},
    },
)  # fmt: skip
