"""Where files lie: no URI may hold credentials, and no message shows them."""

import json
from pathlib import Path

import pytest
import yaml

from data.curation.source import SourceError
from data.curation.sources import list_sources
from data.files.locations import CredentialsError, check_no_credentials
from launch.config import load_config
from launch.overrides import ConfigError

WITH_CREDENTIALS = [
    ("s3://AKIA123:hunter2@bucket/in", "a password"),
    ("az://:hunter2@account/in/*.mp4", "a password"),
    ("s3://bucket/t.csv?X-Amz-Algorithm=x&X-Amz-Signature=hunter2", "its parameter X-Amz-Signature"),
    ("s3://bucket/in?AWSAccessKeyId=hunter2", "its parameter AWSAccessKeyId"),
    ("az://container/in/table.jsonl?sv=2024&sig=hunter2", "its parameter sig"),
    ("gs://bucket/in?access_token=hunter2", "its parameter access_token"),
]


@pytest.mark.parametrize(("place", "what"), WITH_CREDENTIALS)
def test_credentials_in_a_uri_are_refused_and_not_shown(place, what, tmp_path):
    table, config = tmp_path / "videos.jsonl", tmp_path / "run.yaml"
    table.write_text(json.dumps({"path": "a.mp4"}) + "\n" + json.dumps({"path": place}) + "\n", encoding="utf-8")
    for given in ({"source": place}, {"mix": {"a": {"source": place}}}):
        config.write_text(yaml.safe_dump({"data": given, "sample": {"prompts": place}}), encoding="utf-8")
        with pytest.raises(ConfigError) as of_config:
            load_config(config)
        assert str(of_config.value).count(what) == 2
        assert "hunter2" not in str(of_config.value)
    for given, where in ((place, "data.source"), (str(table), f"{table}, row 2")):
        with pytest.raises(SourceError) as of_sources:
            list_sources(given)
        assert f"{where}: the URI holds" in str(of_sources.value)
        assert what in str(of_sources.value)
        assert "hunter2" not in str(of_sources.value)


@pytest.mark.parametrize(
    "place",
    [
        "s3://bucket/a@b/12:30/*.mp4",
        "az://container@account.blob.core.windows.net/in",
        "s3://bucket/clip?.mp4",
        "s3://bucket/clip.mp4?versionId=3",
        "/videos/12:30@home?key=1.mp4",
    ],
)
def test_other_places_are_taken_as_they_are(place):
    check_no_credentials(place)
    assert load_config(Path("demo"), [f"data.source={json.dumps(place)}"]).data.source == place


def test_the_error_is_one_for_users():
    with pytest.raises(CredentialsError, match="give credentials in the environment"):
        check_no_credentials(WITH_CREDENTIALS[0][0])
