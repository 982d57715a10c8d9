"""Object storage: requests by class, and bytes out where they leave the provider's network.

Classes as the providers bill them: PUT, COPY, POST and LIST are `write_units`, GET and all others `read_units`, DELETE is free
(https://aws.amazon.com/s3/pricing/, https://developers.cloudflare.com/r2/pricing/, https://cloud.google.com/storage/pricing).
Whether bytes are egress is not in any answer: inside the region they are free. The setting `egress` says that they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from aifinops import metering, runtime
from aifinops.charges import Charge
from aifinops.errors import swallow
from aifinops.integrations.passing import guarded
from aifinops.integrations.patching import Patch
from aifinops.integrations.resources.seam import begin
from aifinops.metering import Invocation
from aifinops.reading import Part, Reading

__all__ = ["hook", "metered", "sku_at", "stored"]

_HOSTS = (
    (".amazonaws.com", "aws", "s3-standard"),
    (".r2.cloudflarestorage.com", "cloudflare", "r2-standard"),
    (".wasabisys.com", "wasabi", "wasabi"),
    ("storage.googleapis.com", "gcp", "gcs-standard"),
)
_CLASSES = {
    "STANDARD_IA": "s3-standard-ia",
    "ONEZONE_IA": "s3-one-zone-ia",
    "GLACIER": "s3-glacier",
    "DEEP_ARCHIVE": "s3-glacier-deep-archive",
}
"""Storage classes of S3 that have a price in the list; `STANDARD` is the default."""

_NOT_SENT = frozenset({"ConnectTimeoutError", "EndpointConnectionError", "NoCredentialsError", "ParamValidationError"})
"""botocore's exceptions that prove that no request left."""

_WRITES = re.compile(r"^(Put|Copy|Post|List|Create|Upload|Complete|Restore)")
_FREE = re.compile(r"^(Delete|Abort)")


def sku_at(url: str) -> tuple[str, str]:
    """(provider, model) of an S3 endpoint; a host that is nobody's has no price, so its cost is unknown."""
    host = urlsplit(url).hostname or ""
    for end, provider, model in _HOSTS:
        if host.endswith(end):
            return provider, model
    return "s3", host or "unknown"


def _units(operation: str) -> dict[str, int]:
    if _FREE.match(operation):
        return {}
    return {"write_units": 1} if _WRITES.match(operation) else {"read_units": 1}


class _Request:
    """One request to S3 between its beginning and its end."""

    def __init__(self, client: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.operation = args[0] if args else kwargs["operation_name"]
        params = args[1] if len(args) > 1 else kwargs.get("api_params") or {}
        self.provider, self.model = sku_at(client.meta.endpoint_url)
        self.region = (client.meta.region_name or "") if self.provider == "aws" else ""
        self.model = self._class_of(params) or self.model
        self.units = _units(self.operation)

    def _class_of(self, holder: Any) -> str:
        name = holder.get("StorageClass") if isinstance(holder, Mapping) else None
        return _CLASSES.get(str(name), "") if self.provider == "aws" else ""

    def open(self) -> Invocation | None:
        if not self.units:
            return None
        return begin(self.provider, self.operation, self.model, "storage", self.units)

    def settle(self, invocation: Invocation, answer: Any) -> None:
        model = self._class_of(answer) or self.model
        size = answer.get("ContentLength") if self.operation == "GetObject" and isinstance(answer, Mapping) else None
        invocation.settle(_reading(self.units, model, self.region, size if isinstance(size, int) else 0))


def _reading(units: Mapping[str, int], model: str, region: str, sent: int) -> Reading:
    """What a call has used; bytes out are another SKU, so they are a part of their own."""
    if not sent or not runtime.get().config.egress:
        return Reading(dict(units), model=model, region=region)
    parts = (Part(dict(units), model), Part({"bytes_egress": sent}, "egress"))
    return Reading({**units, "bytes_egress": sent}, model=model, region=region, parts=parts)


def _opened(client: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[_Request, Invocation] | None:
    if client.meta.service_model.service_name != "s3":
        return None
    request = _Request(client, args, kwargs)
    invocation = request.open()
    return None if invocation is None else (request, invocation)


def _call(wrapped: Any, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    opened = guarded("storage.begin", _opened, client, args, kwargs)
    if opened is None:
        return wrapped(*args, **kwargs)
    request, invocation = opened
    try:
        answer = wrapped(*args, **kwargs)
    except BaseException as error:
        guarded("storage.failed", _failed, request, invocation, error)
        raise
    guarded("storage.settle", request.settle, invocation, answer)
    return answer


async def _acall(wrapped: Any, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    opened = guarded("storage.begin", _opened, client, args, kwargs)
    if opened is None:
        return await wrapped(*args, **kwargs)
    request, invocation = opened
    try:
        answer = await wrapped(*args, **kwargs)
    except BaseException as error:
        guarded("storage.failed", _failed, request, invocation, error)
        raise
    guarded("storage.settle", request.settle, invocation, answer)
    return answer


def _failed(request: _Request, invocation: Invocation, error: BaseException) -> None:
    """What was never sent is not billed. An answer of 4xx is a request that is billed like any other; of 5xx it is not, and without an answer nobody knows."""
    answer = getattr(error, "response", None)
    status = ((answer or {}).get("ResponseMetadata") or {}).get("HTTPStatusCode", 0) if answer else 0
    if 400 <= status < 500 and status != 403:  # refused requests of strangers are not billed
        invocation.settle(_reading(request.units, request.model, request.region, 0), "error", error)
    elif status >= 400 or type(error).__name__ in _NOT_SENT:
        invocation.release(error)
    else:
        invocation.fail(error)


def hook(module: Any) -> list[Any]:
    """Patch the one function of `botocore.client`, or of `aiobotocore.client`, through which every request goes."""
    owners = (("BaseClient", _call), ("AioBaseClient", _acall))
    try:
        return [
            Patch(getattr(module, name), "_make_api_call", wrapper)
            for name, wrapper in owners
            if getattr(getattr(module, name, None), "__module__", "") == module.__name__
        ]
    except Exception as failure:  # a version that has moved: requests are not charged
        swallow("storage.hook", failure)
        return []


# --- fsspec ---------------------------------------------------------------------------------------------------------------

_FILES = {
    "cat_file": "GetObject", "_cat_file": "GetObject", "get_file": "GetObject", "_get_file": "GetObject",
    "pipe_file": "PutObject", "_pipe_file": "PutObject", "put_file": "PutObject", "_put_file": "PutObject",
    "cp_file": "CopyObject", "_cp_file": "CopyObject", "ls": "ListObjects", "_ls": "ListObjects",
}  # fmt: skip
"""Functions of a filesystem -> the request that each is at least. Asynchronous ones have the underscore."""


def metered(filesystem: Any, *, provider: str, model: str, region: str = "") -> Any:
    """Charge the requests of an fsspec filesystem object: `fs = metered(fsspec.filesystem("gcs"), provider="gcp", model="gcs-standard")`.

    For S3 it is not needed: `instrument("s3")` sees the requests that s3fs makes.

    Args:
        filesystem: the object; it is the same one afterwards. provider, model, region: of what its requests are, as in a price list.
    """
    import inspect

    for name, operation in _FILES.items():
        function = getattr(filesystem, name, None)
        asynchronous = inspect.iscoroutinefunction(function)
        # A filesystem that is asynchronous inside calls the function with the underscore from the one without.
        if function is None or (hasattr(filesystem, f"_{name}") and not name.startswith("_")) or (
            name.startswith("_") and not asynchronous
        ):  # fmt: skip
            continue
        Patch(filesystem, name, _file_wrapper(operation, provider, model, region, asynchronous=asynchronous))
    return filesystem


def _file_wrapper(operation: str, provider: str, model: str, region: str, *, asynchronous: bool) -> Any:
    units = _units(operation)

    def settle(invocation: Invocation, result: Any) -> None:
        sent = len(result) if operation == "GetObject" and isinstance(result, (bytes, bytearray)) else 0
        invocation.settle(_reading(units, model, region, sent))

    def call(wrapped: Any, _: Any, args: Any, kwargs: Any) -> Any:
        invocation = guarded("storage.begin", begin, provider, operation, model, "storage", units)
        if invocation is None:
            return wrapped(*args, **kwargs)
        try:
            result = wrapped(*args, **kwargs)
        except BaseException as error:
            guarded("storage.failed", invocation.fail, error)
            raise
        guarded("storage.settle", settle, invocation, result)
        return result

    async def acall(wrapped: Any, _: Any, args: Any, kwargs: Any) -> Any:
        invocation = guarded("storage.begin", begin, provider, operation, model, "storage", units)
        if invocation is None:
            return await wrapped(*args, **kwargs)
        try:
            result = await wrapped(*args, **kwargs)
        except BaseException as error:
            guarded("storage.failed", invocation.fail, error)
            raise
        guarded("storage.settle", settle, invocation, result)
        return result

    return acall if asynchronous else call


def stored(
    gb_months: Any, *, provider: str, model: str, service: str = "storage", region: str = "", **tags: Any
) -> Charge:
    """Record what lies somewhere: `stored("1.5", provider="pinecone", model="standard", service="vector", customer="acme")`.

    No call says how long something lies, so nothing does this by itself: call it once a day with a thirtieth of the size in GiB.

    Raises:
        ImpossibleUsage: for a negative or NaN quantity.
    """
    return metering.record(
        usage={"gb_months": gb_months}, provider=provider, model=model, service=service, region=region,
        operation="storage", tags=tags,
    )  # fmt: skip
