"""What the server refuses before anything is loaded or listens."""

import socket
from typing import Any

import pytest

from launch.config import ClusterConfig
from launch.overrides import ConfigError
from launch.sample_settings import SamplingConfig
from launch.serve.guard import TOKEN_VARIABLE
from launch.serve.server import Listening, listen, refuse_unused, serve_checkpoint, url_of
from pipeline.distributed.config import WorkersConfig
from pipeline.sample.config import SampleSection
from testing.commands import launch_here


@pytest.mark.parametrize(
    ("name", "sample", "cluster"),
    [
        ("sample.prompts", {"prompts": "prompts.txt"}, {}),
        ("sample.bad_rows", {"bad_rows": "set_aside"}, {}),
        ("sample.sequence_parallel", {"sequence_parallel": 2}, {}),
        ("sample.outputs", {"outputs": "webdataset,mp4"}, {}),
        ("cluster", {}, {"address": "auto"}),
        ("cluster", {}, {"workers": WorkersConfig(num_workers=8)}),
        ("cluster", {}, {"workers": WorkersConfig(gpus_per_worker=1)}),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_here_are_refused(name, sample: dict[str, Any], cluster: dict[str, Any]):
    config = SamplingConfig(sample=SampleSection(**sample), cluster=ClusterConfig(**cluster))
    with pytest.raises(ConfigError, match=f"{name}: serve does not take it"):
        refuse_unused(config)


def test_settings_of_clips_and_threads_are_taken():
    section = SampleSection(steps=3, compare_unguided=True, outputs=("mp4", "gif"))
    refuse_unused(SamplingConfig(sample=section, cluster=ClusterConfig(workers=WorkersConfig(cpus_per_worker=4))))


def test_a_port_that_is_taken_and_a_host_of_another_machine_are_named():
    with listen(Listening(port=0)) as first:
        port = first.getsockname()[1]
        assert url_of("127.0.0.1", first) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConfigError, match=f"port {port} is in use; name another with --port"):
            listen(Listening(port=port))
    with pytest.raises(ConfigError, match=r"--host 192\.0\.2\.1 --port 0 cannot be listened on"):
        listen(Listening(host="192.0.2.1", port=0))


def test_the_default_is_this_machine_alone():
    with listen(Listening(port=0)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    if socket.has_ipv6:
        with listen(Listening(host="::1", port=0)) as listener:
            assert url_of("::1", listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_without_the_extra_the_message_names_it(monkeypatch, tmp_path):
    monkeypatch.setattr("launch.serve.server.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"serve needs NiceGUI: pip install 'reelflow\[serve\]'"):
        next(serve_checkpoint(tmp_path, tmp_path, [], Listening()))


def test_the_command_refuses_before_it_loads_anything(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    done = launch_here("serve", str(tmp_path / "nothing"), "--host", "0.0.0.0")
    assert done.returncode == 1
    assert "lets other machines use the page, which takes a token" in done.stderr
    done = launch_here("serve", str(tmp_path / "nothing"), "--output", str(tmp_path / "served"))
    assert done.returncode == 1
    assert str(tmp_path / "nothing") in done.stderr
    assert not (tmp_path / "served").exists()
