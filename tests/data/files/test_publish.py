"""Publishing a file is all or nothing."""

import pytest

from data.files.publish import publish_text, published, remove_unpublished


def test_publishing_is_all_or_nothing(tmp_path):
    target = tmp_path / "file.txt"
    publish_text(target, "old")

    def fail_halfway() -> None:
        with published(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail_halfway()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    (tmp_path / ".tmp-leftover").write_text("x")
    (tmp_path / ".tmp-folder").mkdir()
    remove_unpublished(tmp_path)
    assert list(tmp_path.iterdir()) == [target]
