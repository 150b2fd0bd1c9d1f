"""The generated reference says what the models say, and the `config` command shows it."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from utterflow.config import commands, reference
from utterflow.config.load import load_config, read_config_file
from utterflow.config.reference import KeyInfo, all_keys, example, explain, find_keys, json_schema, key_tree
from utterflow.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = [REPOSITORY / "config/config.yaml", *sorted((REPOSITORY / "config/experiments").glob("*.yaml"))]


def test_the_generated_files_are_up_to_date() -> None:
    stale = reference.out_of_date(REPOSITORY / "config")
    assert not stale, "run: python -m utterflow.config.reference"


def test_check_fails_on_drift_and_writing_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--folder", str(tmp_path)]
    assert reference.main(["--check", *folder]) == 1
    assert "schema.json, README.md" in capsys.readouterr().err
    assert reference.main(folder) == 0
    assert reference.main(["--check", *folder]) == 0
    (tmp_path / "README.md").write_text("edited by hand")
    assert reference.main(["--check", *folder]) == 1
    assert reference.main(folder) == 0
    assert (tmp_path / "README.md").read_text() == reference.reference_page()


def keys_of_models(model: Any) -> set[str]:
    """Names of all fields of the models below `model`, found without the JSON schema."""
    from pydantic import BaseModel

    seen: set[type[BaseModel]] = set()
    names: set[str] = set()
    queue: list[Any] = [model]
    while queue:
        kind = queue.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if kind in seen:
                continue
            seen.add(kind)
            for name, field in kind.model_fields.items():
                names.add(name)
                queue.append(field.annotation)
        else:
            queue.extend(getattr(kind, "__args__", ()))
    return names


def test_no_key_of_the_models_is_left_out() -> None:
    from utterflow.config.models import Config

    def names(info: KeyInfo) -> set[str]:
        return {child.name for child in info.children}.union(*(names(child) for child in info.children))

    assert names(key_tree()) - {"*"} == keys_of_models(Config)


@pytest.mark.parametrize("info", all_keys(), ids=lambda info: f"{info.path}-{info.variant}")
def test_every_key_is_documented(info: KeyInfo) -> None:
    assert info.description
    assert info.type
    assert info.kind == "key"
    if info.required:
        assert example(info) is not None
    elif info.choices and info.default is not None:
        assert info.default in info.choices


def test_every_key_says_what_it_reruns() -> None:
    sizes = {"threads", "gpus", "mem_mb", "runtime", "vllm_python"}
    of_servers = {"base_url", "base_url_env", "key_env", "budget", "concurrency", "timeout", "retries"}
    of_servers |= {"requests_per_minute", "tokens_per_minute"}
    silent = [info.path for info in all_keys() if not info.reruns and info.name not in sizes | of_servers]
    assert silent == []


def test_paths_are_unique_but_for_variants() -> None:
    seen = [(info.path, info.variant) for info in all_keys()]
    assert len(set(seen)) == len(seen)
    assert {variant for path, variant in seen if path == "corpora.*.root"} == {
        "speechocean762",
        "speaker_tree",
    }


def test_details_of_some_keys() -> None:
    by_path = {info.path: info for info in all_keys() if info.variant is None}
    beams = by_path["asr.*.num_beams"]
    assert (beams.default, beams.required, beams.reruns) == (5, False, ("transcribe",))
    assert beams.type == "whole number 1 to 1000"
    assert by_path["corpora.*.adapter"].choices == ("slurp", "speechocean762", "speaker_tree", "manifest")
    assert by_path["asr.*.gpus"].reruns == ()
    assert by_path["asr.*.sampling_pool"].type.endswith(" or null")
    assert by_path["scoring.*.bootstrap.confidence"].type == "number above 0, below 1"
    (column,) = (info for info in all_keys() if info.path == "corpora.*.columns.text")
    assert column.variant == "manifest"


@pytest.mark.parametrize("tag", find_keys("corpora.*")[0].variants)
def test_the_example_of_each_adapter_is_valid(tag: str) -> None:
    (corpus,) = find_keys("corpora.*")
    raw = {
        "name": "x",
        "corpora": {"dev": example(corpus, tag)},
        "asr": {"tiny": {"model": "./m"}},
        "scoring": {"plain": {}},
        "runs": [{"corpora": ["dev"], "asr": ["tiny"], "scoring": ["plain"]}],
    }
    assert load_config(raw).corpora["dev"].adapter == tag


# Schema -------------------------------------------------------------------------------------------


def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_editors_accept_shipped_configurations(path: Path) -> None:
    assert list(validator().iter_errors(read_config_file(path))) == []
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("=")[2]).resolve() == REPOSITORY / "config/schema.json"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("asr", "num_beam", 3),
        ("asr", "num_beams", "many"),
        ("asr", "dtype", "float61"),
        ("corpora", "adapter", "slrp"),
    ],
)
def test_editors_see_what_the_models_refuse(section: str, key: str, value: Any) -> None:
    raw = read_config_file(SHIPPED[0])
    name = next(iter(raw[section]))
    broken = copy.deepcopy(raw)
    broken[section][name][key] = value
    assert list(validator().iter_errors(broken))
    with pytest.raises(UserError):
        load_config(broken)


def test_editors_see_bad_names() -> None:
    raw = read_config_file(SHIPPED[0])
    raw["asr"]["Not A Name"] = next(iter(raw["asr"].values()))
    assert list(validator().iter_errors(raw))


# Explain ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["asr.*.num_beams", "asr.turbo.num_beams", ".asr.turbo.num_beams"])
def test_a_key_is_explained(path: str) -> None:
    text = explain(path)
    assert text.startswith("asr.*.num_beams\n")
    assert "whole number 1 to 1000" in text
    assert "default: 5" in text
    assert "reruns:  transcribe" in text


def test_a_key_of_several_adapters_is_explained_for_each() -> None:
    text = explain("corpora.dev.split")
    assert "(with speechocean762)" in text
    assert "(with speaker_tree)" in text


def test_a_section_lists_its_keys() -> None:
    assert "snr_db" in explain("corpora.dev.noise")
    assert "[slurp]" in explain("corpora.dev")


def test_names_that_are_paths_may_hold_dots() -> None:
    assert [info.path for info in find_keys("downloads.data/a.tar.gz.md5")] == ["downloads.*.md5"]


def test_entries_of_lists() -> None:
    assert [info.path for info in find_keys("runs.0.asr")] == ["runs.*.asr"]


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("asr.turbo.num_beam", "`asr.*.num_beams`"),
        ("num_beams", "`asr.*.num_beams`"),
        ("scorings", "`scoring`"),
        ("asr.turbo.bootstrap", "`scoring.*.bootstrap`"),
    ],
)
def test_an_unknown_key_is_answered_with_near_ones(path: str, near: str) -> None:
    with pytest.raises(UserError, match=f"no config key `{path}`") as caught:
        explain(path)
    assert near in str(caught.value.fix)


# Command ------------------------------------------------------------------------------------------


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    commands.add_parser(parser.add_subparsers())
    args = parser.parse_args(["config", *arguments])
    return int(args.func(args))


def test_show_prints_what_snakemake_would_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    over = tmp_path / "over.yaml"
    over.write_text("title: mine\n")
    assert run("show", "--configfile", str(over)) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    expected = load_config(read_config_file(SHIPPED[0]) | {"title": "mine"})
    assert load_config(shown) == expected


def test_check_says_ok_or_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / "alone.yaml"
    raw = {
        "name": "alone",
        "corpora": {"dev": {"adapter": "manifest", "path": "x.csv"}},
        "asr": {"a": {"model": "./m"}, "b": {"model": "./m"}, "unused": {"model": "./m"}},
        "scoring": {"plain": {}},
        "runs": [{"corpora": ["dev"], "asr": ["a", "b"], "scoring": ["plain"]}],
    }
    alone.write_text(yaml.safe_dump(raw))
    assert run("check", "--configfile", str(alone)) == 0
    out = capsys.readouterr().out
    assert out.startswith("ok: alone: 2 results")
    assert "no run uses asr: unused" in out
    alone.write_text(yaml.safe_dump(raw | {"asr": {}}))
    with pytest.raises(UserError, match="no entry of `asr` has this name") as caught:
        run("check", "--configfile", str(alone))
    assert caught.value.where == str(alone)


def test_schema_and_explain_print(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema") == 0
    assert json.loads(capsys.readouterr().out) == json_schema()
    assert run("explain", "asr.*.top_k") == 0
    assert capsys.readouterr().out.startswith("asr.*.top_k")
