"""Our own lists: every price has a source and a date, and comes to the amount that its source says.

The amounts are worked out by hand from the sources that `docs/reference/price-lists.md` names.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from aifinops.clock import to_ns
from aifinops.meters import METERS
from aifinops.pricing import lists
from aifinops.pricing.book import PriceBook
from aifinops.pricing.lists import bundled_lists, load_bundled, read_list
from aifinops.usage import Sku, Usage

BUNDLED = Path(lists.BUNDLED)

AT = to_ns(datetime(2026, 11, 24, tzinfo=UTC))
BOOK = PriceBook(bundled_lists())
GIB = 1 << 30


def cost(quantities: dict[str, Any], provider: str, model: str, at: int = AT, **sku: Any) -> Any:
    return BOOK.price(Usage(quantities, Sku(provider, model, **sku), at))


def rows(name: str) -> list[dict[str, Any]]:
    """Every model row of a file."""
    lines = BUNDLED.with_name(f"{name}.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines[1:]) if "model" in row]


# Provenance and loading ---------------------------------------------------------------------------------------------------


def test_the_lists_come_in_the_order_of_authority() -> None:
    """Models first, then what we collected; each names its source and the day when it was last looked at."""
    lists = bundled_lists()
    assert [one.id for one in lists] == ["genai-prices", "aifinops-gpu", "aifinops-storage", "aifinops-vector"]
    assert lists[0] is load_bundled()
    assert all(one.source and one.date and one.currency == "USD" for one in lists)
    assert [sum(1 for _ in one.entries()) for one in lists] == [one.count for one in lists]


@pytest.mark.parametrize("name", ["gpu", "storage", "vector"])
def test_every_price_has_a_source_a_date_and_a_confidence(name: str) -> None:
    """No row is without them, none is from the future, and every meter is one of ours."""
    header = json.loads(BUNDLED.with_name(f"{name}.jsonl").read_text("utf-8").partition("\n")[0])
    for row in rows(name):
        priced = [*row.get("prices", ()), *row.get("variants", ())]
        assert priced, row
        for told in (row, *({**row, **price} for price in priced)):
            assert told["source"], row
            assert date.fromisoformat(told["as_of"]) <= date.fromisoformat(header["date"])
            assert told["confidence"] in {"high", "medium", "low"}
            assert told.get("url", "https://").startswith("https://")
        assert all(price["rates"].keys() <= METERS.keys() for price in priced)


def test_what_is_laid_over_genai_prices_says_so() -> None:
    """Each added model has its source, each changed row names an overlay that the header explains."""
    header = json.loads(BUNDLED.read_text("utf-8").partition("\n")[0])
    changed = [row for row in rows("llm") if "overlays" in row]
    added = [row for row in rows("llm") if "source" in row]
    assert len(changed) > 80
    assert len(added) > 10
    for row in changed:
        assert set(row["overlays"]) <= header["overlays"].keys()
        assert all({"source", "as_of"} <= one.keys() for one in row.get("adjust", ()))
    for row in added:
        assert {"source", "as_of", "confidence", "url"} <= row.keys()
        assert row["source"] in {one["source"] for one in header["overlays"].values()}


def test_the_lists_are_read_lazily() -> None:
    """Opening one parses no model; asking for a type parses its provider only."""
    fresh = read_list(BUNDLED.with_name("gpu.jsonl"))
    assert all(one._index is None for one in fresh._providers.values())
    assert fresh.find("aws", "p5.48xlarge") is not None
    assert [key for key, one in fresh._providers.items() if one._index is not None] == ["aws"]


def test_pricing_a_gpu_imports_nothing_heavy() -> None:
    """The lists need no more than the standard library."""
    code = (
        "import sys\n"
        "from aifinops.pricing.book import PriceBook\n"
        "from aifinops.pricing.lists import bundled_lists\n"
        "from aifinops.usage import Sku, Usage\n"
        "assert PriceBook(bundled_lists()).price(Usage({'gpu_seconds': 1}, Sku('aws', 'p5.48xlarge'), 1)).amount\n"
        "heavy = {'pydantic', 'tomllib', 'genai_prices', 'opentelemetry', 'sqlite3', 'socket', 'asyncio'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# GPUs and instances: provider, type, region, tier, accelerators, USD for each and hour ---------------------------------------

GPUS = [
    ("aws", "p5.48xlarge", "us-east-1", "", 8, "6.88"),
    ("aws", "p5.4xlarge", "us-east-1", "", 1, "6.88"),
    ("aws", "p5en.48xlarge", "us-east-1", "", 8, "7.912"),
    ("aws", "p6-b200.48xlarge", "us-east-1", "", 8, "14.2416"),
    ("aws", "p6-b300.48xlarge", "us-east-1", "", 8, "17.802"),
    ("aws", "p4de.24xlarge", "us-east-1", "", 8, "3.43088125"),
    ("aws", "p4d.24xlarge", "us-east-1", "", 8, "2.74470525"),
    ("aws", "g6e.xlarge", "us-east-1", "", 1, "1.861"),
    ("aws", "g6e.48xlarge", "us-east-1", "", 8, "3.7663975"),
    ("aws", "g6.xlarge", "us-east-1", "", 1, "0.8048"),
    ("aws", "g5.xlarge", "us-east-1", "", 1, "1.006"),
    ("aws", "g5.48xlarge", "us-east-1", "", 8, "2.036"),
    ("aws", "g4dn.xlarge", "us-east-1", "", 1, "0.526"),
    ("aws", "p3.2xlarge", "us-east-1", "", 1, "3.06"),
    ("aws", "p3dn.24xlarge", "us-east-1", "", 8, "3.9015"),
    ("aws", "g7e.2xlarge", "us-east-1", "", 1, "3.36312"),
    ("aws", "trn1.2xlarge", "us-east-1", "", 1, "1.34375"),
    ("aws", "inf2.xlarge", "us-east-1", "", 1, "0.7582"),
    ("azure", "Standard_ND96isr_H100_v5", "eastus", "", 8, "12.29"),
    ("azure", "Standard_ND96isr_H100_v5", "westeurope", "", 8, "15.977"),
    ("azure", "Standard_NC40ads_H100_v5", "eastus", "", 1, "6.98"),
    ("azure", "Standard_ND96isr_H200_v5", "eastus2", "", 8, "10.6"),
    ("azure", "Standard_ND128isr_NDR_GB200_v6", "eastus", "", 4, "27.04"),
    ("azure", "Standard_ND96amsr_A100_v4", "eastus", "", 8, "4.09625"),
    ("azure", "Standard_NC24ads_A100_v4", "eastus", "", 1, "3.673"),
    ("azure", "Standard_ND96asr_v4", "eastus", "", 8, "3.399625"),
    ("azure", "Standard_NV36ads_A10_v5", "eastus", "", 1, "3.2"),
    ("azure", "Standard_NC4as_T4_v3", "eastus", "", 1, "0.526"),
    ("azure", "Standard_NC6s_v3", "eastus", "", 1, "3.06"),
    ("azure", "Standard_ND96isr_MI300X_v5", "eastus2", "", 8, "6"),
    ("gcp", "a3-highgpu-8g", "us-central1", "", 8, "11.0612499878219125"),
    ("gcp", "a3-highgpu-8g", "us-central1", "spot", 8, "6.326192602739725"),
    ("gcp", "a3-megagpu-8g", "us-east4", "", 8, "11.6171985189041125"),
    ("gcp", "a3-megagpu-8g", "us-east4", "spot", 8, "2.9094045753424625"),
    ("gcp", "a2-ultragpu-1g", "us-central1", "", 1, "5.06879789041096"),
    ("gcp", "a2-ultragpu-1g", "us-central1", "spot", 1, "2.75954630136986"),
    ("gcp", "a2-highgpu-1g", "us-central1", "", 1, "3.673385"),
    ("gcp", "a2-highgpu-1g", "us-central1", "spot", 1, "1.92802"),
    ("gcp", "g2-standard-4", "us-central1", "", 1, "0.706832255"),
    ("gcp", "g2-standard-4", "us-central1", "spot", 1, "0.397336"),
    ("gcp", "g4-standard-48", "us-central1", "", 1, "4.49993"),
    ("gcp", "g4-standard-48", "us-central1", "spot", 1, "1.79982"),
    ("gcp", "TPU v5e", "us-central1", "", 1, "1.2"),
    ("gcp", "TPU v5p", "us-east5", "", 1, "4.2"),
    ("gcp", "TPU v6e", "us-east1", "", 1, "2.7"),
    ("gcp", "TPU v6e", "us-east1", "spot", 1, "1.89"),
    ("lambda", "H100 SXM", "", "", 1, "4.29"),
    ("lambda", "H100 PCIe", "", "", 1, "3.29"),
    ("lambda", "B200", "", "", 1, "6.99"),
    ("lambda", "A10", "", "", 1, "1.29"),
    ("runpod", "H100 SXM", "", "", 1, "3.29"),
    ("runpod", "H100 SXM", "", "community", 1, "2.69"),
    ("runpod", "H100 NVL", "", "", 1, "2.79"),
    ("runpod", "H200", "", "", 1, "4.39"),
    ("runpod", "B300", "", "", 1, "6.94"),
    ("runpod", "L40S", "", "", 1, "0.79"),
    ("runpod", "L4", "", "", 1, "0.44"),
    ("modal", "H100 SXM", "", "", 1, "3.95"),
    ("modal", "B200", "", "", 1, "6.25"),
    ("modal", "RTX PRO 6000", "", "", 1, "3.03"),
    ("coreweave", "H100 SXM", "", "", 8, "6.155"),
    ("coreweave", "B200", "", "", 8, "8.6"),
    ("coreweave", "GB200", "", "", 4, "10.5"),
    ("coreweave", "V100 16GB", "", "", 1, "0.8"),
    ("hyperstack", "H100 SXM", "", "", 1, "2.4"),
    ("hyperstack", "H100 PCIe", "", "", 1, "1.9"),
    ("verda", "H100 SXM", "", "", 1, "2.29"),
    ("verda", "H100 SXM", "", "spot", 1, "0.8"),
    ("verda", "B300", "", "", 1, "6.99"),
    ("digitalocean", "H100 SXM", "", "", 1, "3.39"),
    ("digitalocean", "MI300X", "", "", 1, "1.99"),
    ("vultr", "H100 SXM", "", "", 8, "1.99"),
    ("nebius", "H200", "", "", 1, "3.5"),
    ("nebius", "H200", "", "spot", 1, "1.45"),
    ("nebius", "B200", "", "", 1, "5.5"),
]


@pytest.mark.parametrize(("provider", "model", "region", "tier", "count", "each"), GPUS)
def test_a_gpu_hour_costs_what_the_source_says(
    provider: str, model: str, region: str, tier: str, count: int, each: str
) -> None:
    """An hour of all accelerators of an instance costs their number times the rate, exactly."""
    found = cost({"gpu_seconds": 3600 * count}, provider, model, region=region, tier=tier)
    assert found.basis == "priced"
    assert found.amount == count * Decimal(each)


def test_the_number_of_accelerators_is_in_the_row() -> None:
    """So the price of an instance can be told from that of an accelerator: 8 x 6.88 = 55.04 for a p5.48xlarge."""
    [row] = [row for row in rows("gpu") if row["model"] == "p5.48xlarge"]
    assert (row["accelerator"], row["count"]) == ("H100 SXM", 8)
    assert row["count"] * Decimal(row["prices"][0]["rates"]["gpu_seconds"]) == Decimal("55.04")
    assert all(row["count"] >= 1 for row in rows("gpu"))


def test_six_accelerators_cost_what_the_instance_costs() -> None:
    """6.49063 / 6 has no end: the price of all six is kept."""
    assert cost({"gpu_seconds": 6 * 3600}, "aws", "inf2.24xlarge", region="us-east-1").amount == Decimal("6.49063")


def test_part_of_an_hour_is_billed_by_the_second() -> None:
    """1,800 seconds of an L4 at 0.80 cost 0.40."""
    assert cost({"gpu_seconds": 1800}, "modal", "L4").amount == Decimal("0.4")


@pytest.mark.parametrize(
    ("provider", "model", "region", "tier", "vcpus", "amount"),
    [
        ("aws", "m5.xlarge", "us-east-1", "", 4, "0.192"),
        ("aws", "c7i.2xlarge", "us-east-1", "", 8, "0.357"),
        ("gcp", "n2-standard-4", "us-central1", "", 4, "0.194236"),
        ("azure", "Standard_D4s_v5", "eastus", "", 4, "0.192"),
    ],
)
def test_a_cpu_instance_is_priced_by_the_vcpu(
    provider: str, model: str, region: str, tier: str, vcpus: int, amount: str
) -> None:
    """All its vCPUs for an hour cost what the instance costs."""
    assert cost({"cpu_seconds": 3600 * vcpus}, provider, model, region=region, tier=tier).amount == Decimal(amount)


def test_an_unnamed_region_has_the_price_of_the_first_and_says_so() -> None:
    """A region that the list does not have is unknown, not the price of another."""
    anywhere = cost({"gpu_seconds": 3600}, "azure", "Standard_ND96isr_H200_v5")
    assert anywhere.amount == Decimal("10.6")
    assert "where no region is named: the price of eastus2" in anywhere.notes
    spot = cost({"gpu_seconds": 3600}, "gcp", "g2-standard-4", tier="spot")
    assert spot.amount == Decimal("0.397336")
    assert cost({"gpu_seconds": 3600}, "aws", "p5.48xlarge", region="eu-west-1").basis == "unknown"
    assert cost({"gpu_seconds": 3600}, "aws", "p5.48xlarge", tier="reserved_1y").basis == "unknown"


def test_an_old_price_is_not_one_of_today() -> None:
    """The capacity blocks of 2024 price history and nothing later."""
    given = {"gpu_seconds": 8 * 3600}
    then = to_ns(datetime(2024, 12, 1, tzinfo=UTC))
    assert cost(given, "aws", "p5.48xlarge", then, tier="capacity_block").amount == Decimal("39.328")
    assert cost(given, "aws", "p5.48xlarge", tier="capacity_block").basis == "unknown"
    assert cost(given, "aws", "p5e.48xlarge").basis == "unknown"


NVML = {
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA H100 PCIe": "H100 PCIe",
    "NVIDIA H200": "H200",
    "NVIDIA B200": "B200",
    "NVIDIA A100-SXM4-80GB": "A100 80GB SXM",
    "NVIDIA A100 80GB PCIe": "A100 80GB PCIe",
    "NVIDIA A100-SXM4-40GB": "A100 40GB SXM",
    "NVIDIA L40S": "L40S",
    "NVIDIA L4": "L4",
    "NVIDIA A10G": "A10G",
    "Tesla T4": "T4",
    "Tesla V100-SXM2-16GB": "V100 16GB",
    "AMD Instinct MI300X": "MI300X",
}


@pytest.mark.parametrize(("name", "accelerator"), NVML.items())
def test_the_name_that_the_driver_reports_finds_the_accelerator(name: str, accelerator: str) -> None:
    """With no provider known it has a price of low confidence, with its span in a note."""
    assert BOOK.resolve("accelerator", name).model == accelerator
    found = cost({"gpu_seconds": 3600}, "accelerator", name)
    assert found.amount is not None
    assert found.amount > 0
    assert any(note.startswith("without provider and instance type") for note in found.notes)


def test_the_last_resort_is_the_median_over_providers() -> None:
    """Twelve sell the H100 SXM; the sixth and the seventh ask 3.39 and 3.95, so the median is 3.67."""
    asked = sorted(
        Decimal(each)
        for each in ("6.88", "12.29", "4.29", "3.29", "3.95", "6.155", "2.4", "2.29", "3.39", "1.99", "2.95", "11.06")
    )
    assert (asked[5] + asked[6]) / 2 == Decimal("3.67")
    assert cost({"gpu_seconds": 3600}, "accelerator", "H100").amount == Decimal("3.67")
    assert {row["confidence"] for row in rows("gpu") if row["source"].startswith("on-demand prices of")} == {"low"}


# Storage, egress, vector databases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantities", "provider", "model", "region", "amount"),
    [
        ({"gb_months": 10_000}, "aws", "s3-standard", "us-east-1", "230"),
        ({"write_units": 10_000}, "aws", "s3", "us-east-1", "0.05"),
        ({"read_units": 10_000}, "aws", "s3", "us-east-1", "0.004"),
        ({"gb_months": 30_000, "write_units": 30_000}, "aws", "s3-standard-ia", "us-east-1", "375.3"),
        ({"gb_months": 40_000, "read_units": 40_000}, "aws", "s3-one-zone-ia", "us-east-1", "400.04"),
        ({"gb_months": 50_000, "write_units": 50_000}, "aws", "s3-glacier", "us-east-1", "181.5"),
        ({"gb_months": 60_000, "write_units": 60_000}, "aws", "s3-glacier-deep-archive", "us-east-1", "62.4"),
        ({"gb_months": 40}, "aws", "ebs-gp3", "us-east-1", "3.2"),
        ({"gb_months": 100, "write_units": 1000, "read_units": 1000}, "gcp", "gcs", "us-central1", "2.0054"),
        ({"gb_months": 1000}, "gcp", "gcs-archive", "us-central1", "1.2"),
        ({"gb_months": 51_200}, "azure", "blob-hot-lrs", "westus", "1064.96"),
        ({"write_units": 6_000_000, "read_units": 600_000}, "azure", "blob", "westus", "33.264"),
        ({"gb_months": 5_000_000}, "azure", "blob-cool-lrs", "westus", "76000"),
        ({"gb_months": 100, "write_units": 1_000_000, "read_units": 10_000_000}, "cloudflare", "r2", "", "9.6"),
        ({"gb_months": 1, "bytes_egress": 10**15}, "cloudflare", "r2", "", "0.015"),
        ({"gb_months": 1024}, "wasabi", "wasabi", "", "7.99"),
        ({"bytes_egress": 10_240 * GIB}, "aws", "egress", "us-east-1", "921.6"),
        ({"bytes_egress": 10_240 * GIB}, "aws", "egress", "ap-northeast-1", "1167.36"),
        ({"bytes_egress": 1024 * GIB}, "gcp", "egress", "", "122.88"),
        ({"bytes_egress": 1_000 * 10**9}, "azure", "egress", "eastus", "87"),
        ({"bytes_egress": 10**9}, "azure", "egress", "australiaeast", "0.12"),
        ({"gb_months": 1, "read_units": 10**6, "write_units": 10**6}, "pinecone", "serverless", "us-east-1", "20.33"),
        ({"read_units": 10**6, "write_units": 10**6}, "pinecone", "enterprise", "", "33.75"),
        # A GB of turbopuffer has 10**9 bytes, one of the meter 2**30: 0.33 x 1.073741824.
        ({"gb_months": 1}, "turbopuffer", "launch", "", "0.35433480192"),
        ({"write_units": 5, "read_units": 2_000_000}, "turbopuffer", "scale", "", "12"),
        ({"write_units": 3, "read_units": 1024, "bytes_egress": GIB}, "chroma", "chroma-cloud", "", "7.5975"),
        ({"write_units": 750_000}, "zilliz", "serverless", "", "3"),
        ({"gb_months": 500}, "zilliz", "dedicated-storage", "us-east-1", "12.5"),
        ({"gb_months": 10}, "openai", "vector-store", "", "30"),
    ],
)
def test_storage_and_vector_databases_cost_what_the_source_says(
    quantities: dict[str, int], provider: str, model: str, region: str, amount: str
) -> None:
    """Up to the first step of a graduated price, in the units of the meters."""
    assert cost(quantities, provider, model, region=region).amount == Decimal(amount)


def test_what_a_source_does_not_price_is_unknown() -> None:
    """Zilliz names no price of storage: the cost is unknown and what is known of it is its lower bound."""
    found = cost({"read_units": 250_000, "gb_months": 5}, "zilliz", "serverless")
    assert found.amount is None
    assert found.lower == 1
    assert any("which no meter counts" in note for note in cost({"gb_months": 1}, "aws", "s3-glacier").notes)


def test_a_service_is_nothing_without_its_provider() -> None:
    """`standard` and `egress` mean something else at each of them; an instance type is one provider's alone."""
    assert cost({"gb_months": 1}, "", "standard").basis == "unknown"
    assert cost({"gb_months": 1}, "", "r2").basis == "unknown"
    assert cost({"gpu_seconds": 3600}, "", "p5.4xlarge").amount == Decimal("6.88")
    assert cost({"gpu_seconds": 3600}, "", "H100 SXM").basis == "unknown"


def test_a_price_holds_from_its_day() -> None:
    """Wasabi became dearer on 2026-07-01."""
    june = to_ns(datetime(2026, 6, 30, 23, 59, tzinfo=UTC))
    assert cost({"gb_months": 2048}, "wasabi", "wasabi", june).amount == Decimal("13.98")


# Laid over genai-prices -----------------------------------------------------------------------------------------------------

INPUTS, CACHED = {"input_tokens": 1000, "output_tokens": 200}, {"cache_read_tokens": 600, "input_tokens": 400}


@pytest.mark.parametrize(
    ("model", "quantities", "tier", "amount"),
    [
        ("ft:gpt-4.1-mini-2025-04-14:acme::Ab1", INPUTS, "", "0.00144"),
        ("ft:gpt-4.1-mini:acme:house:Ab1", INPUTS, "batch", "0.00072"),
        ("ft:gpt-4.1-mini:acme::Ab1", {**CACHED, "output_tokens": 200}, "", "0.00108"),
        ("ft:gpt-4.1-2025-04-14:acme::Ab1", INPUTS, "", "0.0054"),
        ("ft:gpt-4.1-nano-2025-04-14:acme::Ab1", INPUTS, "", "0.00036"),
        ("ft:o4-mini-2025-04-16:acme::Ab1", INPUTS, "", "0.0072"),
        ("ft:babbage-002:acme::Ab1", INPUTS, "", "0.00192"),
        ("ft:davinci-002:acme::Ab1", INPUTS, "", "0.0144"),
        ("ft:gpt-4o-2024-08-06:acme::Ab1", CACHED, "", "0.002625"),
        ("ft:gpt-4o-mini-2024-07-18:acme::Ab1", CACHED, "", "0.00021"),
        ("ft:gpt-3.5-turbo-0125:acme::Ab1", INPUTS, "", "0.0042"),
        ("gpt-5", {"input_tokens": 1000, "code_interpreter_sessions": 2}, "", "0.06125"),
        ("dall-e-3", {"images": 2}, "", "0.08"),
        ("dall-e-2", {"images": 3}, "", "0.06"),
    ],
)
def test_what_genai_prices_lacks_of_openai(model: str, quantities: dict[str, int], tier: str, amount: str) -> None:
    """Fine-tuned models by name, code interpreter sessions, images without size."""
    assert cost(quantities, "openai", model, tier=tier).amount == Decimal(amount)


def test_a_fine_tune_of_another_model_stays_unknown() -> None:
    """The names of one base model are no beginning of another's."""
    assert cost(INPUTS, "openai", "ft:gpt-4.1-micro:acme::Ab1").basis == "unknown"
    assert cost(INPUTS, "openai", "ft:gpt-4.2:acme::Ab1").basis == "unknown"


@pytest.mark.parametrize("model", ["gemini-2.5-flash", "gemini-2.5-pro", "gemini-3.5-flash"])
def test_provisioned_throughput_costs_nothing_more_by_the_token(model: str) -> None:
    """The subscription is paid for apart: zero is the price, with a note that says why; searches cost as ever."""
    found = cost({**INPUTS, **CACHED, "reasoning_tokens": 100}, "google", model, tier="provisioned")
    assert found.amount == 0
    assert found.basis == "priced"
    assert any("the subscription is billed apart" in note for note in found.notes)
    assert cost(INPUTS, "google", model).amount > 0
    searched = {**INPUTS, "web_search_requests": 1}
    assert cost(searched, "google", model, tier="provisioned").amount > 0


def test_an_overlay_leaves_the_price_of_the_source() -> None:
    """Opus 5 without a region, and in the batch tier, costs what genai-prices says."""
    given = {"input_tokens": 1000, "output_tokens": 100}
    assert cost(given, "anthropic", "claude-opus-5").amount == Decimal("0.0075")
    assert cost(given, "anthropic", "claude-opus-5", tier="batch").amount == Decimal("0.00375")


@pytest.mark.parametrize(
    ("model", "characters", "amount"), [("eleven_multilingual_v2", 1000, "0.08"), ("eleven_flash_v2_5", 1000, "0.04")]
)
def test_speech_is_priced_by_the_character(model: str, characters: int, amount: str) -> None:
    """At ElevenLabs, which genai-prices prices by the second only."""
    assert cost({"characters": characters}, "elevenlabs", model).amount == Decimal(amount)


# What the files say and the loader does not understand yet ------------------------------------------------------------------

OPUS = {"input_tokens": 1000, "output_tokens": 100}


@pytest.mark.parametrize(
    ("quantities", "provider", "model", "sku", "amount"),
    [
        # 51,200 x 0.023 + 460,800 x 0.022 + 88,000 x 0.021
        ({"gb_months": 600_000}, "aws", "s3-standard", {"region": "us-east-1"}, "13163.2"),
        # 51,200 x 0.0208 + 460,800 x 0.019968 + 88,000 x 0.019136
        ({"gb_months": 600_000}, "azure", "blob-hot-lrs", {"region": "westus"}, "11950.1824"),
        # 10,240 x 0.09 + 40,960 x 0.085 + 102,400 x 0.07 + 3,400 x 0.05
        ({"bytes_egress": 157_000 * GIB}, "aws", "egress", {"region": "us-east-1"}, "11741.2"),
        # 1,024 x 0.12 + 9,216 x 0.11 + 2,260 x 0.08
        ({"bytes_egress": 12_500 * GIB}, "gcp", "egress", {}, "1317.44"),
        # (1000 x 5 + 100 x 25) / 1e6 x 1.1, and half of it
        (OPUS, "anthropic", "claude-opus-5", {"region": "us"}, "0.00825"),
        (OPUS, "anthropic", "claude-opus-5", {"region": "us", "tier": "batch"}, "0.004125"),
        # A search costs $10 per 1,000 wherever the inference runs.
        ({**OPUS, "web_search_requests": 1}, "anthropic", "claude-opus-5", {"region": "us"}, "0.01825"),
        # (1000 x 2.5 + 100 x 15) / 1e6 x 1.1
        (OPUS, "openai", "gpt-5.4", {"region": "eu"}, "0.0044"),
        ({"images": 2}, "openai", "dall-e-3", {"options": (("quality", "hd"), ("size", "1024x1792"))}, "0.24"),
        ({"images": 2}, "openai", "dall-e-3", {"options": (("quality", "hd"), ("size", "1024x1024"))}, "0.16"),
        ({"images": 1}, "openai", "dall-e-3", {"options": (("size", "1792x1024"),)}, "0.08"),
        ({"images": 3}, "openai", "dall-e-2", {"options": (("size", "256x256"),)}, "0.048"),
    ],
)
def test_steps_factors_and_options(
    quantities: dict[str, int], provider: str, model: str, sku: dict[str, Any], amount: str
) -> None:
    """Graduated prices, the factor of data residency, and images by size and quality."""
    assert cost(quantities, provider, model, **sku).amount == Decimal(amount)
