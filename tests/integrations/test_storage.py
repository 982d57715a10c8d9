"""Object storage: each request is one charge of its class; bytes out are a part of it where they are egress."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from typing import Any

import pytest

botocore_session = pytest.importorskip("botocore.session")
from botocore.config import Config  # noqa: E402
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError, ParamValidationError  # noqa: E402
from botocore.response import StreamingBody  # noqa: E402
from botocore.stub import Stubber  # noqa: E402

import aifinops as af  # noqa: E402
from aifinops import runtime  # noqa: E402
from aifinops.charges import Charge  # noqa: E402
from aifinops.errors import BudgetExceeded, ConfigurationError  # noqa: E402
from aifinops.integrations.hooks import RESOURCES  # noqa: E402
from aifinops.integrations.resources import storage  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of botocore: they are not ours to keep free of warnings


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    af.instrument("s3")
    yield
    af.uninstrument()


def rows() -> list[Charge]:
    af.flush()
    return list(runtime.get().ledger.rows())


def client_of(service: str = "s3", region: str = "us-east-1", **more: Any) -> Any:
    session = botocore_session.get_session()
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=1)
    return session.create_client(
        service, region_name=region, aws_access_key_id="a", aws_secret_access_key="b", config=config, **more
    )


def body(size: int) -> dict[str, Any]:
    return {"Body": StreamingBody(io.BytesIO(b"x" * size), size), "ContentLength": size}


def test_requests_are_charged_by_their_class() -> None:
    """PUT and LIST are the dear ones, GET and HEAD the cheap ones, DELETE is free; the answer is the SDK's own."""
    client = client_of()
    with Stubber(client) as stub, af.track("files", team="search") as block:
        stub.add_response("put_object", {"ETag": '"1"'})
        stub.add_response("list_objects_v2", {"KeyCount": 0})
        stub.add_response("get_object", body(3))
        stub.add_response("head_object", {"ContentLength": 3})
        stub.add_response("delete_object", {})
        assert client.put_object(Bucket="house", Key="a", Body=b"xxx")["ETag"] == '"1"'
        client.list_objects_v2(Bucket="house")
        assert client.get_object(Bucket="house", Key="a")["Body"].read() == b"xxx"
        client.head_object(Bucket="house", Key="a")
        client.delete_object(Bucket="house", Key="a")
    assert [(charge.operation, dict(charge.quantities), charge.amount) for charge in rows()] == [
        ("PutObject", {"write_units": 1}, 5_000),  # $0.005 / 1,000
        ("ListObjectsV2", {"write_units": 1}, 5_000),
        ("GetObject", {"read_units": 1}, 400),  # $0.0004 / 1,000
        ("HeadObject", {"read_units": 1}, 400),
    ]
    assert {(charge.provider, charge.model, charge.service) for charge in rows()} == {("aws", "s3-standard", "storage")}
    assert len(block.charges) == 4
    assert {charge.tags["team"] for charge in rows()} == {"search"}


def test_egress_is_a_part_of_the_charge_when_it_is_said_to_be() -> None:
    """1 GiB at $0.09 and one request, as one charge whose lines add up."""
    af.init(egress=True)
    client = client_of()
    with Stubber(client) as stub:
        stub.add_response("get_object", {"ContentLength": 1 << 30, "Body": StreamingBody(io.BytesIO(b""), 0)})
        client.get_object(Bucket="house", Key="a")
    (charge,) = rows()
    assert dict(charge.quantities) == {"read_units": 1, "bytes_egress": 1 << 30}
    assert charge.amount == 90_000_400
    assert sum(amount for _, amount in charge.lines) == charge.amount


def test_the_storage_class_decides_the_price() -> None:
    """That of the request when something is written, that of the answer when it is read."""
    client = client_of()
    with Stubber(client) as stub:
        stub.add_response("put_object", {})
        stub.add_response("get_object", {**body(1), "StorageClass": "STANDARD_IA"})
        client.put_object(Bucket="house", Key="a", Body=b"", StorageClass="DEEP_ARCHIVE")
        client.get_object(Bucket="house", Key="a")
    assert [(charge.response_model, charge.amount) for charge in rows()] == [
        ("s3-glacier-deep-archive", 50_000),
        ("s3-standard-ia", 1_000),
    ]


def test_a_region_without_a_price_is_unknown() -> None:
    """What is listed for one region is no price of another."""
    client = client_of(region="eu-west-1")
    with Stubber(client) as stub:
        stub.add_response("get_object", body(1))
        client.get_object(Bucket="house", Key="a")
    (charge,) = rows()
    assert (charge.region, charge.amount, charge.basis) == ("eu-west-1", None, "unknown")


@pytest.mark.parametrize(
    ("url", "sku"),
    [
        ("https://s3.us-east-1.amazonaws.com", ("aws", "s3-standard")),
        ("https://0123.r2.cloudflarestorage.com", ("cloudflare", "r2-standard")),
        ("https://s3.eu-central-1.wasabisys.com", ("wasabi", "wasabi")),
        ("https://storage.googleapis.com", ("gcp", "gcs-standard")),
        ("http://127.0.0.1:9000", ("s3", "127.0.0.1")),
    ],
)
def test_the_endpoint_says_whose_storage_it_is(url: str, sku: tuple[str, str]) -> None:
    """Everything that speaks S3; a server of your own has the price that you give it."""
    assert storage.sku_at(url) == sku
    client = client_of(endpoint_url=url)
    with Stubber(client) as stub:
        stub.add_response("get_object", body(1))
        client.get_object(Bucket="house", Key="a")
    (charge,) = rows()
    assert (charge.provider, charge.response_model) == sku
    assert (charge.amount is None) == (sku[0] == "s3")


def hang_up(request: Any, **_: Any) -> None:
    raise ConnectionClosedError(endpoint_url=request.url)


def test_errors_are_the_sdks_own_and_billed_as_the_provider_bills_them() -> None:
    """A 404 is a request like any other; a 403, a 503 and what was never sent are not billed; without an answer nobody knows."""
    client = client_of()
    with Stubber(client) as stub:
        for code, status in (("NoSuchKey", 404), ("AccessDenied", 403), ("SlowDown", 503)):
            stub.add_client_error("get_object", code, http_status_code=status)
        for code in ("NoSuchKey", "AccessDenied", "SlowDown"):
            with pytest.raises(ClientError, match=code):
                client.get_object(Bucket="house", Key="a")
    with pytest.raises(EndpointConnectionError):
        client_of(endpoint_url="http://127.0.0.1:9").get_object(Bucket="house", Key="a")
    with pytest.raises(ParamValidationError):
        client.get_object(Bucket="house")
    client.meta.events.register("before-send.s3.*", hang_up)
    with pytest.raises(ConnectionClosedError):
        client.get_object(Bucket="house", Key="a")
    assert [(charge.status, charge.error, charge.amount) for charge in rows()] == [
        ("error", "NoSuchKey", 400),
        ("error", "ConnectionClosedError", None),
    ]


def test_a_budget_holds_before_anything_is_sent() -> None:
    """The price of a request is known before: two PUTs do not fit into the money for one."""
    client = client_of()
    with Stubber(client) as stub, af.budget("0.000006 USD") as limit:
        stub.add_response("put_object", {})
        client.put_object(Bucket="house", Key="a", Body=b"")
        with pytest.raises(BudgetExceeded):
            client.put_object(Bucket="house", Key="b", Body=b"")
        stub.assert_no_pending_responses()
        assert str(limit.spent) == "0.000005000"


def test_other_services_are_left_alone() -> None:
    """The same function carries every call to AWS."""
    client = client_of("sts")
    with Stubber(client) as stub:
        stub.add_response("get_caller_identity", {"Account": "1"})
        assert client.get_caller_identity()["Account"] == "1"
    assert rows() == []


def test_uninstrument_restores_the_function() -> None:
    """It is what it was."""
    import botocore.client

    ours = vars(botocore.client.BaseClient)["_make_api_call"]
    af.uninstrument("s3")
    assert vars(botocore.client.BaseClient)["_make_api_call"] is not ours


def test_a_filesystem_of_fsspec() -> None:
    """Its requests are charged as those of the storage that it is said to be; it stays the same object."""
    fsspec = pytest.importorskip("fsspec")
    af.init(egress=True)
    plain = fsspec.get_filesystem_class("memory")(skip_instance_cache=True)
    files = storage.metered(plain, provider="gcp", model="gcs-standard")
    assert files is plain
    files.pipe_file("/house/a", b"x" * 1024)
    assert files.cat_file("/house/a") == b"x" * 1024
    assert files.ls("/house", detail=False) == ["/house/a"]
    with pytest.raises(FileNotFoundError):
        files.cat_file("/house/none")
    write, read, listing, missing = rows()
    assert (write.quantities, write.amount) == ({"write_units": 1}, 5_000)
    assert read.quantities == {"read_units": 1, "bytes_egress": 1024}
    assert read.amount == 515  # $0.0004 / 1,000 and 1 KiB of $0.12 a GiB, rounded up
    assert (listing.amount, missing.status) == (5_000, "error")


def test_what_lies_somewhere_is_recorded_by_hand() -> None:
    """GiB-months of an index, at the price of the list."""
    charge = storage.stored("1.5", provider="pinecone", model="standard", service="vector", customer="acme")
    assert (charge.service, charge.operation, charge.amount) == ("vector", "storage", 495_000_000)
    assert charge.tags["customer"] == "acme"


def test_a_library_that_is_not_installed_is_said() -> None:
    """The name is known, the package is missing: the error says what to install."""
    for name, hook in RESOURCES.items():
        if importlib.util.find_spec(hook.top) is None:
            with pytest.raises(ConfigurationError, match=f"pip install {hook.package}"):
                af.instrument(name)
