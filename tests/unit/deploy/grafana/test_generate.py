"""The files are what the modules say."""

from deploy.grafana import generate


def test_dashboards_are_up_to_date():
    assert generate.main(["--check"]) == 0


def test_check_tells_outdated_and_left_over_dashboards(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.main(["--check"]) == 1
    assert "outdated" in capsys.readouterr().err
    (tmp_path / "former.json").write_text("{}")
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    assert not (tmp_path / "former.json").exists()
