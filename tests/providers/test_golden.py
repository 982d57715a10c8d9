"""What is read of every form of answer, from full bodies: one row a trap of a provider's accounting."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import aifinops as af
from aifinops.errors import ImpossibleUsage
from aifinops.integrations import extract, registry
from aifinops.integrations.responses import read_response

BODIES = Path(__file__).parent / "bodies"
AT = datetime(2026, 11, 10, 12, tzinfo=UTC)
PROVIDERS = {"xai": "x_ai", "google": "gcp.gemini", "bedrock": "aws.bedrock", "mistral": "mistral_ai"}


BODIES_OF_OPENAI = 3
"""Major version whose types the bodies of OpenAI are true to."""


@dataclass(frozen=True)
class Case:
    """One body and what it means.

    cost: exact, None where no list has a price. sdk: `module:Class` whose instance it can be; `asked`: the model of the request.
    """

    name: str
    quantities: dict[str, Any]
    cost: str | None
    model: str = ""
    asked: str = ""
    tier: str = ""
    region: str = ""
    options: tuple[tuple[str, str], ...] = ()
    sdk: str = ""
    parts: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    basis: str = "priced"

    @property
    def provider(self) -> str:
        folder = self.name.partition("/")[0]
        return PROVIDERS.get(folder, folder)


def q(**quantities: Any) -> dict[str, Any]:
    return quantities


CHAT, RESPONSE = "openai.types.chat:ChatCompletion", "openai.types.responses:Response"
EVENT = "openai.types.responses:Response{}Event"
MESSAGE, BETA = "anthropic.types:Message", "anthropic.types.beta:BetaMessage"
GEMINI = "google.genai.types:GenerateContentResponse"
MINI, OPUS, HAIKU, SONNET = (
    "gpt-5-mini-2025-08-07",
    "claude-opus-5",
    "claude-haiku-4-5-20251001",
    "claude-sonnet-4-5-20250929",
)
LLAMA, OSS = "llama-3.3-70b-versatile", "openai/gpt-oss-120b"

INTERACTION = q(
    input_tokens=570, input_image_tokens=200, cache_read_tokens=300, output_tokens=100, reasoning_tokens=50, web_search_requests=1,
)  # fmt: skip

CASES = [
    # --- OpenAI chat: cached, written, audio and image tokens are inside the prompt; reasoning and predictions inside the completion
    Case("openai/chat_cached", q(input_tokens=400, cache_read_tokens=600, output_tokens=200), "0.00375",
         "gpt-4o-2024-08-06", tier="default", sdk=CHAT),
    Case("openai/chat_last_chunk", q(input_tokens=400, cache_read_tokens=600, output_tokens=200), "0.00375",
         "gpt-4o-2024-08-06", tier="default", sdk="openai.types.chat:ChatCompletionChunk"),
    Case("openai/chat_audio", q(input_tokens=300, input_audio_tokens=900, output_tokens=100, output_audio_tokens=400), "0.05615",
         "gpt-audio", tier="default", sdk=CHAT),
    Case("openai/chat_rejected_predictions", q(input_tokens=1000, output_tokens=900), "0.0115",
         "gpt-4o-2024-08-06", tier="default", sdk=CHAT),
    Case("openai/chat_cache_write",
         q(input_tokens=500, cache_read_tokens=1000, cache_write_tokens=3500, output_tokens=36, reasoning_tokens=64), "0.0219",
         "gpt-5.6-sol", tier="default", sdk=CHAT),
    Case("openai/chat_priority", q(input_tokens=1_000_000), "3.5", "o3-2025-04-16", tier="priority", sdk=CHAT),
    Case("openai/chat_unknown_model", q(input_tokens=1000, output_tokens=200), None, "gpt-99-turbo", tier="default", sdk=CHAT),
    Case("openai/completion", q(input_tokens=1000, output_tokens=500), "0.0025", "gpt-3.5-turbo-instruct",
         sdk="openai.types:Completion"),
    Case("openai/embeddings", q(input_tokens=50_000), "0.001", "text-embedding-3-small", sdk="openai.types:CreateEmbeddingResponse"),
    # --- OpenAI Responses: lifetimes of written tokens; tools are counted outside the usage; every final event carries it
    Case("openai/response_cache_write",
         q(input_tokens=1000, cache_read_tokens=2000, cache_write_30m_tokens=5000, cache_write_12h_tokens=2000, output_tokens=172,
           reasoning_tokens=128), "0.0458", "gpt-5.6-sol", tier="default", sdk=RESPONSE),
    Case("openai/response_web_search", q(input_tokens=1000, output_tokens=100, web_search_requests=4), "0.04045",
         MINI, tier="default", sdk=RESPONSE),
    Case("openai/response_web_search_untold",
         q(input_tokens=1000, output_tokens=100, web_search_requests=1, file_search_requests=1), "0.01295",
         MINI, tier="default", sdk=RESPONSE),
    Case("openai/response_image_tool",
         q(input_tokens=1160, output_tokens=40, reasoning_tokens=60, cache_read_tokens=40, cache_read_image_tokens=60,
           input_image_tokens=240, output_image_tokens=4160), "0.17025", MINI, tier="default", sdk=RESPONSE,
         parts=[(MINI, "", q(input_tokens=1000, output_tokens=40, reasoning_tokens=60)),
                ("gpt-image-1", "", q(input_tokens=160, cache_read_tokens=40, cache_read_image_tokens=60, input_image_tokens=240,
                                      output_image_tokens=4160))]),
    Case("openai/response_completed_event", q(input_tokens=1000, output_tokens=40, reasoning_tokens=60), "0.000225",
         MINI, tier="flex", sdk=EVENT.format("Completed")),
    Case("openai/response_incomplete_event", q(input_tokens=1000, output_tokens=40, reasoning_tokens=60), "0.000225",
         MINI, tier="flex", sdk=EVENT.format("Incomplete")),
    Case("openai/response_failed_event", q(input_tokens=1000, output_tokens=40, reasoning_tokens=60), "0.000225",
         MINI, tier="flex", sdk=EVENT.format("Failed")),
    Case("openai/response_compaction", q(input_tokens=40_000, output_tokens=1200), "0.0124", asked="gpt-5-mini",
         sdk="openai.types.responses:CompactedResponse"),
    # --- OpenAI, other answers: most do not name their model
    Case("openai/images", q(input_tokens=50, input_image_tokens=200, output_tokens=4160), "0.16865", asked="gpt-image-1",
         sdk="openai.types:ImagesResponse"),
    Case("openai/image_event", q(input_tokens=50, input_image_tokens=200, output_tokens=4160), "0.16865", asked="gpt-image-1",
         sdk="openai.types:ImageGenCompletedEvent"),
    Case("openai/images_svg",
         q(input_tokens=4050, input_image_tokens=200, output_image_tokens=4160, output_tokens=2000, reasoning_tokens=1000),
         "0.21765", asked="gpt-image-1", sdk="openai.types:ImagesResponse",
         parts=[("", "", q(input_tokens=50, input_image_tokens=200, output_image_tokens=4160)),
                ("gpt-5.2", "", q(input_tokens=4000, output_tokens=2000, reasoning_tokens=1000))]),
    Case("openai/images_by_number", q(images=2), None, asked="dall-e-3",
         options=(("quality", "high"), ("size", "1024x1536")), sdk="openai.types:ImagesResponse"),
    Case("openai/transcription_tokens", q(input_tokens=50, input_audio_tokens=1350, output_tokens=300), "0.011225",
         asked="gpt-4o-transcribe", sdk="openai.types.audio:Transcription"),
    Case("openai/transcription_event", q(input_tokens=50, input_audio_tokens=1350, output_tokens=300), "0.011225",
         asked="gpt-4o-transcribe", sdk="openai.types.audio:TranscriptionTextDoneEvent"),
    Case("openai/transcription_seconds", q(audio_seconds=91), "0.0091", asked="whisper-1",
         sdk="openai.types.audio:TranscriptionVerbose"),
    Case("openai/realtime_done",
         q(input_tokens=400, cache_read_tokens=200, input_audio_tokens=600, cache_read_audio_tokens=300, output_tokens=100,
           output_audio_tokens=300), "0.0418", asked="gpt-realtime", sdk="openai.types.realtime:ResponseDoneEvent"),
    Case("openai/realtime_transcription", q(audio_seconds=Decimal("3.5")), "0.00035", asked="whisper-1",
         sdk="openai.types.realtime:ConversationItemInputAudioTranscriptionCompletedEvent"),
    Case("openai/live_updated", q(session_seconds=60), None, asked="gpt-live-1",
         sdk="openai.types.live:SessionUsageUpdatedEvent"),
    Case("openai/live_closed", q(session_seconds=95), None, "gpt-live-1", sdk="openai.types.live:SessionClosedEvent"),
    Case("openai/batch", q(input_tokens=80_000, cache_read_tokens=20_000, output_tokens=20_000, reasoning_tokens=30_000), "0.06025",
         MINI, tier="batch", sdk="openai.types:Batch"),
    Case("openai/batch_line", q(input_tokens=1000, output_tokens=200), "0.000325", MINI, tier="batch"),
    Case("openai/batch_line_responses", q(input_tokens=1000, output_tokens=200), "0.000325", MINI, tier="batch"),
    Case("openai/run", q(input_tokens=400, cache_read_tokens=600, output_tokens=200), "0.00375", "gpt-4o-2024-08-06",
         sdk="openai.types.beta.threads:Run"),
    Case("openai/decision", q(input_tokens=800, output_tokens=20), "0.00024", "gpt-5-mini", sdk="openai.types:Decision"),
    Case("openai/agent_turn", q(input_tokens=2000, cache_read_tokens=1000, output_tokens=150, reasoning_tokens=50), "0.000925",
         asked="gpt-5-mini", sdk="openai.types.beta:AgentSessionTurnCompletedEvent"),
    # --- Anthropic: input leaves the cache out; lifetimes; thinking inside output; iterations at their own models
    Case("anthropic/cache_ttl",
         q(input_tokens=100, cache_read_tokens=500, cache_write_tokens=100, cache_write_1h_tokens=300, output_tokens=200), "0.005625",
         SONNET, sdk=MESSAGE),
    Case("anthropic/cache_untold_ttl", q(input_tokens=100, cache_read_tokens=500, cache_write_tokens=400, output_tokens=200),
         "0.00495", SONNET, sdk=MESSAGE),
    Case("anthropic/thinking", q(input_tokens=1000, output_tokens=200, reasoning_tokens=700), "0.0275", OPUS, sdk=MESSAGE),
    Case("anthropic/fast", q(input_tokens=1000, output_tokens=100), "0.015", OPUS, tier="fast", sdk=MESSAGE),
    Case("anthropic/batch", q(input_tokens=1000, output_tokens=100), "0.00375", OPUS, tier="batch", sdk=MESSAGE),
    Case("anthropic/batch_line", q(input_tokens=1000, output_tokens=100), "0.00375", OPUS, tier="batch",
         sdk="anthropic.types.messages:MessageBatchIndividualResponse"),
    Case("anthropic/server_tools", q(input_tokens=1000, output_tokens=100, web_search_requests=3, tool_calls=2), "0.0375", OPUS,
         sdk=MESSAGE),
    Case("anthropic/compaction", q(input_tokens=51_000, output_tokens=2100), "0.3075", OPUS, sdk=BETA,
         parts=[(OPUS, "compaction", q(input_tokens=50_000, output_tokens=2000)),
                (OPUS, "message", q(input_tokens=1000, output_tokens=100))]),
    Case("anthropic/compaction_alone", q(input_tokens=51_000, output_tokens=2100), "0.3075", OPUS, sdk=BETA,
         parts=[(OPUS, "", q(input_tokens=1000, output_tokens=100)),
                (OPUS, "compaction", q(input_tokens=50_000, output_tokens=2000))]),
    Case("anthropic/advisor", q(input_tokens=3100, cache_read_tokens=100, output_tokens=1950, reasoning_tokens=150), "0.04721",
         HAIKU, sdk=BETA,
         parts=[(HAIKU, "message", q(input_tokens=400, cache_read_tokens=100, output_tokens=50, reasoning_tokens=150)),
                (OPUS, "advisor_message", q(input_tokens=900, output_tokens=1500)),
                (HAIKU, "message", q(input_tokens=1800, output_tokens=400))]),
    Case("anthropic/fallback", q(input_tokens=1000, output_tokens=300), "0.0025", HAIKU, sdk=BETA,
         parts=[(HAIKU, "fallback_message", q(input_tokens=1000, output_tokens=300))]),
    # --- Gemini: cached inside the prompt; thoughts and prompts of tools outside; traffic type; modalities
    Case("google/thoughts", q(input_tokens=1000, output_tokens=100, reasoning_tokens=400), "0.00155", "gemini-2.5-flash", sdk=GEMINI),
    Case("google/modalities_cached",
         q(input_tokens=500, cache_read_tokens=500, input_audio_tokens=1500, cache_read_audio_tokens=1500, input_image_tokens=1000,
           output_tokens=100), "0.002365", "gemini-2.5-flash", sdk=GEMINI),
    Case("google/tool_use", q(input_tokens=4000, output_tokens=200, reasoning_tokens=300), "0.01", "gemini-2.5-pro", sdk=GEMINI),
    Case("google/traffic_on_demand", q(input_tokens=1000, output_tokens=100, reasoning_tokens=400), "0.00155", "gemini-2.5-flash",
         sdk=GEMINI),
    Case("google/traffic_flex", q(input_tokens=1000, output_tokens=100, reasoning_tokens=400), None, "gemini-2.5-flash", tier="flex",
         sdk=GEMINI),
    Case("google/traffic_priority", q(input_tokens=1000, output_tokens=100, reasoning_tokens=400), None, "gemini-2.5-flash",
         tier="priority", sdk=GEMINI),
    Case("google/grounding_2_5", q(input_tokens=1000, output_tokens=100, web_search_requests=1), "0.03555", "gemini-2.5-flash",
         sdk=GEMINI),
    Case("google/grounding_3", q(input_tokens=1000, output_tokens=100, web_search_requests=3), "0.0452", "gemini-3-pro-preview",
         sdk=GEMINI),
    Case("google/image_output", q(input_tokens=100, output_tokens=10, output_image_tokens=1290), "0.038755",
         "gemini-2.5-flash-image", sdk=GEMINI),
    Case("google/live", q(input_tokens=400, input_audio_tokens=1600, output_audio_tokens=500, reasoning_tokens=40), "0.01108",
         asked="gemini-2.5-flash-native-audio-preview-09-2025", sdk="google.genai.types:LiveServerMessage"),
    Case("google/interaction",
         q(input_tokens=570, input_audio_tokens=200, cache_read_tokens=300, output_tokens=100, reasoning_tokens=50,
           web_search_requests=1), "0.035755", "gemini-2.5-flash"),
    Case("google/interaction_steps", INTERACTION, None, "gemini-2.5-flash", tier="flex", sdk="google.genai.interactions:Interaction"),
    Case("google/interaction_completed", INTERACTION, "0.035615", "gemini-2.5-flash",
         sdk="google.genai.interactions:InteractionCompletedEvent"),
    Case("google/decision", INTERACTION, "0.035615", asked="gemini-2.5-flash", sdk="google.genai._gaos.types.decisions:CreateDecisionResponse"),
    Case("google/batch_line", q(input_tokens=1000, output_tokens=100), "0.000275", "gemini-2.5-flash", tier="batch"),
    Case("google/batch_line_embedding", q(input_tokens=12), None, asked="gemini-embedding-001", tier="batch"),
    Case("google/embed_characters", q(characters=48), None, asked="text-embedding-005",
         sdk="google.genai.types:EmbedContentResponse"),
    Case("google/embed_predict", q(input_tokens=12), "0.0000018", asked="gemini-embedding-001"),
    Case("google/imagen", q(images=2), None, asked="imagen-4.0-generate-001"),
    # --- Bedrock: input leaves the cache out, the total includes it; the answer names no model
    Case("bedrock/converse_cache",
         q(input_tokens=100, cache_read_tokens=500, cache_write_tokens=100, cache_write_1h_tokens=300, output_tokens=200),
         "0.0061875", asked="anthropic.claude-sonnet-4-5-20250929-v1:0", sdk="botocore:ConverseResponse"),
    Case("bedrock/converse_stream_metadata", q(input_tokens=1000, output_tokens=200), "0.00144", asked="amazon.nova-pro-v1:0",
         sdk="botocore:ConverseStreamOutput"),
    Case("bedrock/converse_router", q(input_tokens=1000, output_tokens=200), None,
         "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-pro-v1:0", tier="flex", sdk="botocore:ConverseResponse"),
    Case("bedrock/converse_tiers", q(input_tokens=100, output_tokens=200), "0", asked="amazon.nova-pro-v1:0", tier="provisioned", basis="committed",
         options=(("latency", "optimized"),), sdk="botocore:ConverseResponse"),
    Case("bedrock/invoke_claude", q(input_tokens=100, output_tokens=200), "0.00363",
         asked="us.anthropic.claude-sonnet-4-5-20250929-v1:0", sdk=MESSAGE),
    Case("bedrock/invoke_titan", q(input_tokens=28, output_tokens=197), "0.0001238", asked="amazon.titan-text-express-v1"),
    Case("bedrock/invoke_llama", q(input_tokens=8, output_tokens=35), "0.0001437", asked="meta.llama3-70b-instruct-v1:0"),
    Case("bedrock/invoke_nova", q(input_tokens=7, cache_read_tokens=300, output_tokens=53), "0.00001764", asked="amazon.nova-lite-v1:0"),
    Case("bedrock/invoke_jamba", q(input_tokens=16, output_tokens=19), None, asked="ai21.jamba-1-5-mini-v1:0"),
    Case("bedrock/guardrail",
         q(guardrail_content_units=2, guardrail_topic_units=2, guardrail_word_units=2, guardrail_pii_units=2, guardrail_grounding_units=3,
           guardrail_image_units=1, guardrail_reasoning_units=2), None, "guardrails", sdk="botocore:ApplyGuardrailResponse"),
    Case("bedrock/embed_titan", q(input_tokens=5), "0.0000001", asked="amazon.titan-embed-text-v2:0"),
    # --- Mistral: extra fields; connectors beside prompt and completion; pages; minutes
    Case("mistral/chat", q(input_tokens=600, cache_read_tokens=400, output_tokens=200), "0.000216", "mistral-small-latest",
         sdk="mistralai.client.models:ChatCompletionResponse"),
    Case("mistral/chat_audio", q(input_tokens=100, output_tokens=50, audio_seconds=30), None, "voxtral-mini-latest",
         sdk="mistralai.client.models:ChatCompletionResponse"),
    Case("mistral/conversation", q(input_tokens=7300, output_tokens=55, web_search_requests=1), None, asked="mistral-large-latest",
         sdk="mistralai.client.models:ConversationResponse"),
    Case("mistral/conversation_done", q(input_tokens=7300, output_tokens=55, web_search_requests=1), None,
         asked="mistral-large-latest", sdk="mistralai.client.models:ResponseDoneEvent"),
    Case("mistral/transcription_done", q(audio_seconds=203), "0.01015", "voxtral-mini-latest",
         sdk="mistralai.client.models:TranscriptionStreamDone"),
    Case("mistral/transcription", q(audio_seconds=203), "0.01015", "voxtral-mini-latest",
         sdk="mistralai.client.models:TranscriptionResponse"),
    Case("mistral/ocr", q(pages=12), "0.048", "mistral-ocr-latest", sdk="mistralai.client.models:OCRResponse"),
    Case("mistral/embeddings", q(input_tokens=15_000), "0.0015", "mistral-embed", sdk="mistralai.client.models:EmbeddingResponse"),
    Case("mistral/response", q(input_tokens=600, cache_read_tokens=400, output_tokens=150, reasoning_tokens=50), "0.000216", "mistral-small-latest",
         sdk="mistralai.client.models:CreateResponseResponse"),
    Case("mistral/batch_line_chat", q(input_tokens=600, cache_read_tokens=400, output_tokens=200), "0.000108", "mistral-small-latest", tier="batch"),
    Case("mistral/batch_line_ocr", q(pages=12), "0.024", "mistral-ocr-latest", tier="batch"),
    Case("mistral/batch_line_transcription", q(audio_seconds=203), "0.005075", "voxtral-mini-latest", tier="batch"),
    Case("mistral/batch_line_embeddings", q(input_tokens=15_000), "0.00075", "mistral-embed", tier="batch"),
    # --- Cohere: billed units, which are floats, and never the tokens beside them
    Case("cohere/chat", q(input_tokens=1000, output_tokens=200), "0.0045", asked="command-a-03-2025", sdk="cohere:V2ChatResponse"),
    Case("cohere/chat_end", q(input_tokens=1000, output_tokens=200), "0.0045", asked="command-a-03-2025"),
    Case("cohere/chat_v1", q(input_tokens=1000, output_tokens=200), "0.0045", asked="command-a-03-2025",
         sdk="cohere:NonStreamedChatResponse"),
    Case("cohere/chat_v1_end", q(input_tokens=1000, output_tokens=200), "0.0045", asked="command-a-03-2025",
         sdk="cohere:StreamEndStreamedChatResponse"),
    Case("cohere/generate", q(input_tokens=1000, output_tokens=200), "0.0045", asked="command-a-03-2025", sdk="cohere:Generation"),
    Case("cohere/rerank", q(search_units=2), None, asked="rerank-v3.5", sdk="cohere:V2RerankResponse"),
    Case("cohere/embed", q(input_tokens=5000), "0.0006", asked="embed-v4.0", sdk="cohere:EmbedByTypeResponse"),
    Case("cohere/classify", q(classifications=3), None, asked="embed-v4.0", sdk="cohere:ClassifyResponse"),
    # --- OpenAI's form with additions
    Case("deepseek/chat", q(input_tokens=400, cache_read_tokens=600, output_tokens=200, reasoning_tokens=100), "0.0002418",
         "deepseek-flash", tier="default", sdk=CHAT),
    Case("groq/chat", q(input_tokens=600, cache_read_tokens=400, output_tokens=150, reasoning_tokens=50), "0.00024", OSS,
         tier="on_demand", sdk="groq.types.chat:ChatCompletion"),
    Case("groq/last_chunk", q(input_tokens=1000, output_tokens=200), "0.000748", LLAMA, sdk="groq.types.chat:ChatCompletionChunk"),
    Case("groq/compound", q(input_tokens=5000, output_tokens=610, reasoning_tokens=90), "0.001648", "groq/compound",
         tier="on_demand", sdk="groq.types.chat:ChatCompletion",
         parts=[(LLAMA, "", q(input_tokens=1000, output_tokens=110, reasoning_tokens=90)),
                (OSS, "", q(input_tokens=4000, output_tokens=500))]),
    Case("openrouter/cost", q(input_tokens=1000, output_tokens=100), "0.0042", "openai/gpt-4o", sdk=CHAT, basis="reported"),
    Case("openrouter/byok", q(input_tokens=1000, output_tokens=100), "0.003675", "openai/gpt-4o", sdk=CHAT, basis="reported"),
    Case("openrouter/own_key_false", q(input_tokens=1000, output_tokens=100), "0.0042", "openai/gpt-4o", sdk=CHAT, basis="reported"),
    Case("vllm/chat_plain", q(input_tokens=1000, output_tokens=200), None, "meta-llama/Llama-3.3-70B-Instruct", sdk=CHAT),
    Case("vllm/chat_details", q(input_tokens=488, cache_read_tokens=512, output_tokens=200), None,
         "meta-llama/Llama-3.3-70B-Instruct", sdk=CHAT),
    Case("xai/chat", q(input_tokens=800, cache_read_tokens=200, output_tokens=100, reasoning_tokens=300), "0.0037756", "grok-4.3",
         tier="default", sdk=CHAT, basis="reported"),
    Case("perplexity/chat", q(input_tokens=1000, output_tokens=200), "0.012", "sonar-pro", sdk=CHAT, basis="reported"),
    Case("voyageai/rerank", q(input_tokens=43), None, "rerank-2-lite"),
    # --- Ollama: evaluated tokens only; none of the prompt when it was kept from before
    Case("ollama/chat", q(input_tokens=26, output_tokens=282), None, "llama3.2", sdk="ollama:ChatResponse"),
    Case("ollama/chat_prompt_kept", q(output_tokens=282), None, "llama3.2", sdk="ollama:ChatResponse"),
    Case("ollama/generate", q(input_tokens=26, output_tokens=259), None, "llama3.2", sdk="ollama:GenerateResponse"),
    # --- Hugging Face: counts of text generation stand in the details; of the prompt only at the end of a stream
    Case("huggingface/chat", q(input_tokens=1000, output_tokens=200), None, "meta-llama/Llama-3.3-70B-Instruct",
         sdk="huggingface_hub:ChatCompletionOutput"),
    Case("huggingface/generation", q(output_tokens=20), None, sdk="huggingface_hub:TextGenerationOutput"),
    Case("huggingface/generation_last", q(input_tokens=7, output_tokens=20), None, sdk="huggingface_hub:TextGenerationStreamOutput"),
    Case("ollama/embed", q(input_tokens=8), None, "nomic-embed-text", sdk="ollama:EmbedResponse"),
]  # fmt: skip

ELSEWHERE = {
    "anthropic/geo_us", "deepseek/saturday", "google/traffic_provisioned", "openai/chat_fine_tuned",  # in test_e3
    "openai/chat_impossible",
}  # fmt: skip

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every
def test_the_context_and_the_buckets_of_a_body(case: Case, body: Callable[[str], Any]) -> None:
    """Disjoint quantities, model, tier, region and options come from the answer alone; the answer is left as it was."""
    answer = body(case.name)
    usage = read_response(answer, case.provider)
    sku = usage.sku
    assert dict(usage.quantities) == case.quantities
    assert (sku.model, sku.tier, sku.region, sku.options) == (case.model, case.tier, case.region, case.options)
    assert answer == body(case.name)


@every
def test_the_cost_of_a_body(case: Case, body: Callable[[str], Any]) -> None:
    """The price of that moment and context, exact to the last digit, with lines that add up; unknown is never zero."""
    cost = af.price_response(body(case.name), case.provider, AT, model=case.asked)
    assert cost.amount == (None if case.cost is None else Decimal(case.cost))
    assert cost.basis == ("unknown" if case.cost is None else case.basis)
    if cost.basis == "priced":
        assert sum(line.amount for line in cost.lines) == cost.amount


@every
def test_parts_are_told_apart(case: Case, body: Callable[[str], Any]) -> None:
    """Each part has its own model; together they are all that was used, and every line names the part that it is of."""
    from aifinops.integrations.responses import _read

    reading = _read(body(case.name), case.provider)[0]
    assert [(part.model, part.kind, dict(part.quantities)) for part in reading.parts] == case.parts
    if reading.parts:
        assert extract.added(part.quantities for part in reading.parts) == reading.quantities
        cost = af.price_response(body(case.name), case.provider, AT, model=case.asked)
        assert all(any((model or case.asked) in line.note for model, _, _ in case.parts) for line in cost.lines)


@every
def test_no_number_of_a_golden_body_is_unread(case: Case, body: Callable[[str], Any]) -> None:
    """Every numeric field of the usage object is metered, or known to need no meter."""
    before = dict(extract.drift())
    read_response(body(case.name), case.provider)
    assert extract.drift() == before


@every
def test_a_body_is_true_to_the_types_of_the_sdk(case: Case, body: Callable[[str], Any]) -> None:
    """The provider's own model class accepts it, and its object is read like the body."""
    if not case.sdk:
        pytest.skip("the SDK has no class of this form")
    module, _, name = case.sdk.partition(":")
    if module == "botocore":
        _validated_by_botocore(name, body(case.name))
        return
    sdk = pytest.importorskip(module)
    if module.startswith("openai") and int(version("openai").partition(".")[0]) < BODIES_OF_OPENAI:
        pytest.skip("the bodies have what older versions of the SDK do not know yet")
    answer = _object(sdk, name, body(case.name))
    usage = read_response(answer, case.provider)
    assert dict(usage.quantities) == case.quantities
    assert (usage.sku.model, usage.sku.tier, usage.sku.options) == (case.model, case.tier, case.options)
    cost = af.price_response(answer, case.provider, AT, model=case.asked)
    assert cost.amount == (None if case.cost is None else Decimal(case.cost))


def _object(module: Any, name: str, answer: Any) -> Any:
    from pydantic import TypeAdapter

    kind = getattr(module, name, None)
    if kind is None:
        pytest.skip(f"this version of {module.__name__} has no {name}")
    assert _strays(kind, answer) == [], "fields that the type requires are missing"
    return TypeAdapter(kind).validate_python(answer)


def _strays(kind: Any, answer: Any) -> list[str]:
    """Required fields of the outermost model that the body lacks (some SDKs construct without validating)."""
    fields = getattr(kind, "model_fields", {})
    return [
        name for name, one in fields.items() if one.is_required() and name not in answer and one.alias not in answer
    ]


def _validated_by_botocore(shape: str, answer: Any) -> None:
    loaders = pytest.importorskip("botocore.loaders")
    validate = importlib.import_module("botocore.validate")
    model = importlib.import_module("botocore.model")
    data = loaders.Loader().load_service_model("bedrock-runtime", "service-2")
    report = validate.ParamValidator().validate(
        {key: value for key, value in answer.items() if key != "ResponseMetadata"},
        model.ServiceModel(data).shape_for(shape),
    )
    assert not report.has_errors(), report.generate_report()


def test_every_body_has_a_row() -> None:
    """No golden body is left untested."""
    files = {f"{path.parent.name}/{path.stem}" for path in BODIES.glob("*/*.json")}
    assert files == {case.name for case in CASES} | ELSEWHERE


def test_parts_above_their_whole_are_refused_with_both_numbers(body: Callable[[str], Any]) -> None:
    """More cached tokens than prompt tokens: neither is believed."""
    with pytest.raises(ImpossibleUsage, match=r"600.*is above usage\.prompt_tokens 100"):
        af.price_response(body("openai/chat_impossible"), "openai")


def test_a_reported_cost_wins_and_ours_is_told_beside_it(body: Callable[[str], Any]) -> None:
    """The amount is the provider's; the notes have what the list says."""
    cost = af.price_response(body("openrouter/cost"), "openrouter", AT)
    assert (cost.amount, cost.reported, cost.basis) == (Decimal("0.0042"), Decimal("0.0042"), "reported")
    assert any("0.0035" in note and "genai-prices/openrouter" in note for note in cost.notes)


def test_a_redeemed_credit_is_noted(body: Callable[[str], Any]) -> None:
    """What usage cannot tell is said."""
    cost = af.price_response(body("anthropic/fallback"), "anthropic", AT)
    assert any("fallback credit" in note for note in cost.notes)


def test_the_model_of_an_image_tool_is_never_guessed(body: Callable[[str], Any]) -> None:
    """Without a name for it the cost is unknown, and at least what the answer's own model cost."""
    answer = body("openai/response_image_tool")
    answer["tools"] = [{"type": "image_generation"}]
    cost = af.price_response(answer, "openai", AT)
    assert (cost.amount, cost.lower) == (None, Decimal("0.00045"))


def test_counts_that_iterations_do_not_account_for_are_kept(body: Callable[[str], Any]) -> None:
    """Never under: what the answer says above its iterations stays a part of its own model."""
    answer = body("anthropic/compaction")
    answer["usage"]["input_tokens"] = 1500
    usage = read_response(answer, "anthropic")
    assert usage.quantities == {"input_tokens": 51_500, "output_tokens": 2100}


def test_an_iteration_of_an_unknown_kind_is_never_left_out_and_is_noted(body: Callable[[str], Any]) -> None:
    """A new kind is taken as beside the counts above it: rather too much than too little, and it is said."""
    answer = body("anthropic/compaction")
    answer["usage"]["iterations"][0]["type"] = "oracle_message"
    cost = af.price_response(answer, "anthropic", AT)
    assert cost.amount == Decimal("0.3075")
    assert any("oracle_message" in note for note in cost.notes)


def test_usage_outside_its_usual_place_is_kept_raw(body: Callable[[str], Any]) -> None:
    """Groq's last chunk has its usage under a name of Groq's, beside which the prompt may stand."""
    answer = body("groq/last_chunk")
    answer["x_groq"]["debug"] = {"input_tokens": ["my", " secret"]}
    usage = read_response(answer, "groq")
    assert usage.raw is not None
    assert usage.raw["x_groq.usage"]["prompt_tokens"] == 1000
    assert "secret" not in str(usage.raw)


def test_a_call_is_priced_at_the_moment_of_its_answer(body: Callable[[str], Any]) -> None:
    """The answer's own time counts where it has one; `at` wins over it."""
    answer = body("deepseek/saturday")
    saturday = af.price_response(answer, "deepseek")
    monday = af.price_response(answer, "deepseek", datetime(2026, 11, 16, 2, tzinfo=UTC))
    assert (saturday.amount, monday.amount) == (Decimal("0.15"), Decimal("0.3"))


@pytest.mark.parametrize(("spelling", "name"), [("Bedrock", "bedrock/converse_stream_metadata"), ("gemini", "google/thoughts"),
                                                ("vertex_ai", "google/thoughts"), ("mistralai", "mistral/chat"),
                                                ("azure_openai", "openai/chat_cached")])  # fmt: skip
def test_providers_have_several_spellings(spelling: str, name: str, body: Callable[[str], Any]) -> None:
    """OpenTelemetry's names and those of SDKs are understood."""
    assert read_response(body(name), spelling).quantities


def test_an_unknown_provider_is_answered_with_the_nearest() -> None:
    """The message names the value and what to type."""
    with pytest.raises(af.ConfigurationError, match=r"'antropic'.*Did you mean 'anthropic'"):
        af.price_response({}, "antropic")


@pytest.mark.parametrize(
    "answer", [None, [], "text", 3, {}, {"object": "chat.completion"}, {"usage": None}, {"type": ["message"]}]
)
def test_an_answer_without_usage_is_said_to_have_none(answer: Any) -> None:
    """For every provider: an error that says what is known, never zero."""
    for provider in registry.ANSWERS:
        with pytest.raises(af.ConfigurationError, match="has no usage"):
            af.price_response(answer, provider)


def test_snake_case_and_camel_case_are_one(body: Callable[[str], Any]) -> None:
    """A dump of Google's object in Python's spelling is read like the JSON."""
    answer = body("google/modalities_cached")
    snake = json.loads(json.dumps(answer), object_pairs_hook=_snake)
    assert read_response(snake, "google").quantities == read_response(answer, "google").quantities


def _snake(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {"".join(f"_{c.lower()}" if c.isupper() else c for c in key): value for key, value in pairs}


def test_a_number_that_no_path_knows_is_kept_and_counted(body: Callable[[str], Any]) -> None:
    """A new field of a provider is seen: kept raw, counted under its path, and the cost is as before."""
    answer = body("openai/chat_cached")
    answer["usage"]["prompt_tokens_details"]["smell_tokens"] = 7
    answer["usage"]["note"] = "not a number"
    key = ("openai", "prompt_tokens_details.smell_tokens")
    before = extract.drift().get(key, 0)
    usage = read_response(copy.deepcopy(answer), "openai")
    assert extract.drift()[key] == before + 1
    assert usage.raw is not None
    assert usage.raw["prompt_tokens_details"]["smell_tokens"] == 7
    assert ("openai", "note") not in extract.drift()
