"""Where a process runs: environment variables of each platform, the firmware's names, metadata services on a loopback stand-in."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aifinops.gpu import metadata
from aifinops.gpu.where import Place, from_environ, place


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The firmware of the machine that runs the tests says nothing, and nothing is remembered of another test."""
    monkeypatch.setattr(metadata, "DMI", str(tmp_path))
    metadata.forget()
    yield tmp_path
    metadata.forget()


VERTEX = {"job": json.dumps({"worker_pool_specs": [{"machine_spec": {"machine_type": "a3-highgpu-8g"}}]})}
PLATFORMS = {
    "sagemaker": (
        {"SM_RESOURCE_CONFIG": '{"current_instance_type": "ml.p4d.24xlarge"}', "AWS_REGION": "eu-west-1"},
        ("aws", "eu-west-1", "ml.p4d.24xlarge", ""),
    ),
    "modal": ({"MODAL_TASK_ID": "ta-1", "MODAL_REGION": "us-east"}, ("modal", "us-east", "", "")),
    "runpod": ({"RUNPOD_POD_ID": "abc", "RUNPOD_DC_ID": "EU-RO-1"}, ("runpod", "EU-RO-1", "", "")),
    "vertex": (
        {"CLOUD_ML_PROJECT_ID": "p", "CLOUD_ML_REGION": "us-central1", "CLUSTER_SPEC": json.dumps(VERTEX)},
        ("gcp", "us-central1", "a3-highgpu-8g", ""),
    ),
    "skypilot": (
        {"SKYPILOT_CLUSTER_INFO": '{"cluster_name": "c", "cloud": "GCP", "region": "us-east4", "zone": "us-east4-a"}'},
        ("gcp", "us-east4", "", ""),
    ),
    "azure": ({"AZUREML_RUN_ID": "r"}, ("azure", "", "", "")),
    "batch": ({"AWS_BATCH_JOB_ID": "j", "AWS_REGION": "us-east-1"}, ("aws", "us-east-1", "", "")),
    "resource": (
        {
            "OTEL_RESOURCE_ATTRIBUTES": "cloud.provider=aws,cloud.availability_zone=us-east-1a,host.type=p5.48xlarge,"
            "aifinops.price.term=capacity%2Dblock"
        },
        ("aws", "us-east-1", "p5.48xlarge", "capacity_block"),
    ),
    "zone of google": (
        {"OTEL_RESOURCE_ATTRIBUTES": "cloud.provider=gcp,cloud.availability_zone=us-central1-a"},
        ("gcp", "us-central1", "", ""),
    ),
    "laptop with a region": ({"AWS_REGION": "us-east-1"}, ("", "", "", "")),
    "nothing": ({}, ("", "", "", "")),
}


@pytest.mark.parametrize("name", PLATFORMS)
def test_environment(name: str) -> None:
    """Each platform is known by its own variables, and nothing is concluded from what others set as well."""
    environ, expected = PLATFORMS[name]
    found = from_environ(environ)
    assert (found.provider, found.region, found.instance_type, found.term) == expected
    assert bool(found.source) == any(expected)
    assert found.confidence == ("high" if any(expected) else "")


def test_schedulers_say_whose_job_it_is() -> None:
    """Slurm, Run:ai and Kubernetes know the job and the node, not the machine's price."""
    found = from_environ(
        {
            "SLURM_JOB_ID": "77", "SLURM_JOB_ACCOUNT": "nlp", "SLURM_JOB_PARTITION": "h100", "SLURMD_NODENAME": "n1",
            "RUNAI_NUM_OF_GPUS": "2", "JOB_UUID": "u-1", "JOB_NAME": "train", "KUBERNETES_SERVICE_HOST": "10.0.0.1",
            "POD_NAMESPACE": "team-a", "HOSTNAME": "pod-0", "NODE_NAME": "gpu-7",
        }
    )  # fmt: skip
    assert found == Place()
    assert dict(found.details) == {
        "job.id": "u-1", "job.name": "train", "slurm.account": "nlp", "slurm.partition": "h100", "host.name": "n1",
        "k8s.node.name": "gpu-7", "k8s.namespace.name": "team-a", "k8s.pod.name": "pod-0",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "{", "[]", '{"current_instance_type": null}', "\x00"])
def test_broken_variables_say_nothing(text: str) -> None:
    """A variable that cannot be read is one that says nothing, never an error."""
    found = from_environ({"SM_RESOURCE_CONFIG": text, "SKYPILOT_CLUSTER_INFO": text, "OTEL_RESOURCE_ATTRIBUTES": text})
    assert found.instance_type == ""


def test_pools_of_different_types_are_not_guessed() -> None:
    """A Vertex job whose pools differ does not say which of them this is."""
    pools = {"worker_pool_specs": [{"machine_spec": {"machine_type": kind}} for kind in ("n1-standard-4", "a2-highgpu-1g")]}  # fmt: skip
    found = from_environ({"CLOUD_ML_PROJECT_ID": "p", "CLUSTER_SPEC": json.dumps({"job": json.dumps(pools)})})
    assert (found.provider, found.instance_type) == ("gcp", "")


def test_another_provider_fills_no_gap() -> None:
    """A place of one provider takes nothing from what was read about another."""
    assert Place("modal").over(Place("aws", "us-east-1", "p5.48xlarge")) == Place("modal")
    filled = Place("aws", source="a", confidence="high").over(Place("aws", "r", "t", "spot", "low", "b"))
    assert filled == Place("aws", "r", "t", "spot", "low", "a and b")


def write_firmware(folder: Path, **names: str) -> None:
    for name, text in names.items():
        (folder / name).write_text(text + "\n")


def test_firmware_of_nitro_has_the_instance_type(nowhere: Path) -> None:
    """Amazon's Nitro machines are named after their type: known without a word over the network."""
    write_firmware(nowhere, sys_vendor="Amazon EC2", product_name="p5.48xlarge")
    assert place({}) == Place("aws", "", "p5.48xlarge", "", "low", "the firmware")


def test_firmware_of_others_names_the_cloud(nowhere: Path) -> None:
    """Google by its product, Azure by the tag that only its machines have."""
    write_firmware(nowhere, sys_vendor="Google", product_name="Google Compute Engine")
    assert place({}).provider == "gcp"
    write_firmware(nowhere, sys_vendor="Microsoft Corporation", product_name="Virtual Machine")
    assert place({}).provider == ""
    write_firmware(nowhere, chassis_asset_tag="7783-7084-3265-9085-8269-3286-77")
    assert place({}).provider == "azure"


def test_the_term_of_the_user_comes_first() -> None:
    """What the user says about the terms holds whatever the platform says."""
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "cloud.provider=aws,host.type=p5.48xlarge,aifinops.price.term=spot"}
    assert place(environ, term="reserved").term == "reserved"


# --- metadata services -------------------------------------------------------------------------------------------------------


class Service(BaseHTTPRequestHandler):
    """The three clouds' services at one address, each refusing what its own does not ask for."""

    protocol_version = "HTTP/1.1"
    seen: list[str]
    delay = 0.0
    life = "spot"

    def do_PUT(self) -> None:
        if self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]:
            return self.answer("secret")
        return self.answer("", 400)

    def do_GET(self) -> None:
        time.sleep(self.delay)
        aws = {"instance-type": "p5.48xlarge", "placement/region": "us-east-1", "instance-life-cycle": self.life}
        if self.path.startswith("/latest/meta-data/"):
            if self.headers["X-aws-ec2-metadata-token"] != "secret":
                return self.answer("", 401)
            return self.answer(aws[self.path.removeprefix("/latest/meta-data/")])
        if self.path.startswith("/computeMetadata/v1/instance/"):
            if self.headers["Metadata-Flavor"] != "Google":
                return self.answer("", 403)
            gcp = {
                "machine-type": "projects/1/machineTypes/a3-highgpu-8g",
                "zone": "projects/1/zones/us-central1-a",
                "scheduling/preemptible": "TRUE",
            }
            return self.answer(gcp[self.path.removeprefix("/computeMetadata/v1/instance/")])
        if self.headers["Metadata"] == "true":
            said = {"vmSize": "Standard_ND96isr_H100_v5", "location": "eastus", "priority": "Regular"}
            return self.answer(json.dumps(said))
        return self.answer("", 400)

    def answer(self, text: str, status: int = 200) -> None:
        type(self).seen.append(self.path)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[tuple[str, type[Service]]]:
    handler = type("Handler", (Service,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("provider", "variable", "expected"),
    [
        ("aws", "AWS_EC2_METADATA_SERVICE_ENDPOINT", Place("aws", "us-east-1", "p5.48xlarge", "spot", "high")),
        ("gcp", "GCE_METADATA_HOST", Place("gcp", "us-central1", "a3-highgpu-8g", "spot", "high")),
        ("azure", "AZURE_METADATA_HOST", Place("azure", "eastus", "Standard_ND96isr_H100_v5", "on_demand", "high")),
    ],
)
def test_metadata_services(provider: str, variable: str, expected: Place, service: tuple[str, type[Service]]) -> None:
    """Type, region and terms of each cloud, in the form that it wants to be asked; once a process."""
    address, handler = service
    found = metadata.ask({variable: f"http://{address}/"}, provider=provider, timeout_s=5)
    assert (found.provider, found.region, found.instance_type, found.term, found.confidence) == (
        expected.provider, expected.region, expected.instance_type, expected.term, expected.confidence,
    )  # fmt: skip
    asked = len(handler.seen)
    assert metadata.ask({}, provider=provider) == found
    assert len(handler.seen) == asked


def test_a_capacity_block_is_known_by_its_life_cycle(service: tuple[str, type[Service]]) -> None:
    """EC2 says of a capacity block that it is one."""
    address, handler = service
    handler.life = "capacity-block"
    found = metadata.ask({"AWS_EC2_METADATA_SERVICE_ENDPOINT": address}, provider="aws", timeout_s=5)
    assert found.term == "capacity_block"


def test_a_slow_service_costs_the_budget_at_most(service: tuple[str, type[Service]]) -> None:
    """Whoever asks waits for the budget, not for the service."""
    address, handler = service
    handler.delay = 1.0
    began = time.monotonic()
    found = metadata.ask({"GCE_METADATA_HOST": address}, provider="gcp", timeout_s=0.05)
    assert found == Place()
    assert time.monotonic() - began < 0.9


def test_nothing_is_asked_where_it_is_not_allowed(nowhere: Path, service: tuple[str, type[Service]]) -> None:
    """Without the setting no packet leaves, nor where the firmware names no cloud, nor where AWS's own variable forbids it."""
    address, handler = service
    environ = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": address}
    assert place(environ, allow_network=True) == Place()
    write_firmware(nowhere, sys_vendor="Amazon EC2", product_name="p5.48xlarge")
    metadata.forget()
    assert place(environ).term == ""
    assert place({**environ, "AWS_EC2_METADATA_DISABLED": "true"}, allow_network=True).term == ""
    assert handler.seen == []
    metadata.forget()
    assert place(environ, allow_network=True).term in {"spot", ""}  # it may have been slow today
    assert handler.seen


def test_no_service_is_no_error() -> None:
    """A closed port is an empty place, at once."""
    assert metadata.ask({"GCE_METADATA_HOST": "127.0.0.1:9"}, provider="gcp", timeout_s=5) == Place()
