"""Config files are merged as Snakemake merges them, and an error says all that is wrong and what to write."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from utterflow.config.load import effective_raw, load_config, nearest, read_config_file
from utterflow.errors import UserError
from utterflow.targets import used_lists

GOOD: dict[str, Any] = {
    "name": "small",
    "corpora": {"dev": {"adapter": "manifest", "path": "data/dev.csv"}},
    "asr": {"tiny": {"model": "./models/tiny"}},
    "scoring": {"plain": {}},
    "runs": [{"corpora": ["dev"], "asr": ["tiny"], "scoring": ["plain"]}],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one key set; numbers in the path are list indices."""
    raw = copy.deepcopy(GOOD)
    *outer, last = path.split("/")
    place: Any = raw
    for part in outer:
        place = place[int(part)] if part.isdigit() else place.setdefault(part, {})
    place[last] = value
    return raw


def without(path: str) -> dict[str, Any]:
    raw = copy.deepcopy(GOOD)
    *outer, last = path.split("/")
    place: Any = raw
    for part in outer:
        place = place[int(part)] if part.isdigit() else place[part]
    del place[last]
    return raw


def error_of(raw: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_config(raw, source="mine.yaml")
    assert caught.value.where == "mine.yaml"
    return str(caught.value)


def problems(message: str) -> list[str]:
    """The problems that a message lists, one text each."""
    body = message.split(":\n\n", 1)[1].split("\n\n  where:")[0]
    return body.split("\n\n")


def written(problem: str) -> Any:
    """The YAML that a problem proposes, parsed."""
    return yaml.safe_load(problem.split("  write:\n", 1)[1])


def test_a_good_configuration_loads() -> None:
    config = load_config(GOOD)
    assert config.asr["tiny"].num_beams == 5
    assert config.corpora["dev"].adapter == "manifest"


@pytest.mark.parametrize(
    ("raw", "first_line", "says", "proposes"),
    [
        pytest.param(
            changed("asr/tiny/num_beam", 3),
            "asr.tiny.num_beam = 3",
            "did you mean `num_beams`?",
            {"asr": {"tiny": {"num_beams": 3}}},
            id="misspelled key",
        ),
        pytest.param(
            changed("corpora/dev/colums", {"id": "x"}),
            "corpora.dev.colums = {id: x}",
            "did you mean `columns`?",
            {"corpora": {"dev": {"columns": {"id": "x"}}}},
            id="misspelled key behind a union: no tag in the path",
        ),
        pytest.param(
            changed("corpora/dev/annotations", "x.jsonl"),
            "corpora.dev.annotations = x.jsonl",
            "only with `adapter: slurp`; with `manifest` there are: adapter, shards,",
            None,
            id="key of another adapter",
        ),
        pytest.param(
            changed("num_beams", 3),
            "num_beams = 3",
            "is known as asr.*.num_beams",
            None,
            id="key in the wrong place",
        ),
        pytest.param(
            changed("qqq", 3),
            "qqq = 3",
            "known here: name, title, downloads, tools, corpora, asr, recordings",
            None,
            id="key like no other",
        ),
        pytest.param(
            changed("asr/tiny/dtype", "float61"),
            "asr.tiny.dtype = float61",
            "must be one of: auto, float32, bfloat16, float16",
            {"asr": {"tiny": {"dtype": "float16"}}},
            id="not an allowed value",
        ),
        pytest.param(
            changed("corpora/dev/adapter", "speech_ocean"),
            "corpora.dev.adapter = speech_ocean",
            "one of: slurp, speechocean762, speaker_tree, manifest",
            {"corpora": {"dev": {"adapter": "speechocean762"}}},
            id="wrong adapter",
        ),
        pytest.param(
            without("corpora/dev/adapter"),
            "corpora.dev.adapter",
            "required key is missing; one of: slurp",
            {"corpora": {"dev": {"adapter": "manifest"}}},
            id="no adapter: told from the keys that are there",
        ),
        pytest.param(
            without("corpora/dev/path"),
            "corpora.dev.path",
            "required key is missing: file ending in .jsonl",
            {"corpora": {"dev": {"path": "data/mine/recordings.csv"}}},
            id="missing key",
        ),
        pytest.param(
            without("runs/0/scoring"),
            "runs.0",
            "`scoring` goes with `corpora` and `asr`",
            None,
            id="a run without scoring",
        ),
        pytest.param(
            changed("asr/Turbo V3", {"model": "./x"}),
            "asr.Turbo V3",
            "lower-case letters",
            {"asr": {"turbo_v3": "..."}},
            id="bad name",
        ),
        pytest.param(
            changed("name", "My run"), "name = My run", "lower-case", {"name": "my_run"}, id="bad name of all"
        ),
        pytest.param(
            changed("runs/0/asr", ["tinny"]),
            "runs.0.asr = tinny",
            "there are: tiny",
            {"runs": [{"asr": ["tiny"]}]},
            id="reference to nothing",
        ),
        pytest.param(
            changed("runs/0/asr", "tiny"),
            "runs.0.asr = tiny",
            "must be a list",
            {"runs": [{"asr": ["tiny"]}]},
            id="text instead of a list",
        ),
        pytest.param(
            changed("scoring/plain/oracle_at", []),
            "scoring.plain.oracle_at = []",
            "at least 1",
            {"scoring": {"plain": {"oracle_at": [1, 2, 5]}}},
            id="empty list",
        ),
        pytest.param(
            changed("asr/tiny/batch_size", "many"),
            "asr.tiny.batch_size = many",
            "must be a whole number",
            {"asr": {"tiny": {"batch_size": 8}}},
            id="text instead of a number",
        ),
        pytest.param(
            changed("asr/tiny/top_p", 1.5),
            "asr.tiny.top_p = 1.5",
            "must be at most 1",
            {"asr": {"tiny": {"top_p": 1}}},
            id="out of range",
        ),
        pytest.param(
            changed("asr/tiny/length_penalty", float("inf")),
            "asr.tiny.length_penalty = .inf",
            "must be a finite number",
            {"asr": {"tiny": {"length_penalty": 1.0}}},
            id="infinite",
        ),
        pytest.param(
            changed("asr/tiny/language", False),
            "asr.tiny.language = false",
            "put the word in quotes",
            {"asr": {"tiny": {"language": "en"}}},
            id="the Norway problem",
        ),
        pytest.param(
            changed("asr/tiny", None),
            "asr.tiny = null",
            "nothing stands under it",
            {"asr": {"tiny": {"model": "openai/whisper-large-v3-turbo"}}},
            id="empty section",
        ),
        pytest.param(
            changed("runs", [3]),
            "runs.0 = 3",
            "must hold keys",
            {"runs": [{"corpora": ["dev"], "asr": ["tiny"], "scoring": ["plain"]}]},
            id="value instead of a section",
        ),
        pytest.param(
            changed("asr/tiny/model", "openai/whisper-tiny"),
            "asr.tiny",
            "needs `revision: <commit>`",
            None,
            id="hub model without a commit",
        ),
        pytest.param(
            changed("downloads", {"slurp.tar": {"url": "https://example.org/slurp.tar"}}),
            "downloads.slurp.tar",
            "stored below data/",
            {"downloads": {"data/slurp.tar": "..."}},
            id="download elsewhere",
        ),
        pytest.param(
            changed("downloads", {"data/a.b.tar": {"url": "example.org"}}),
            "downloads.data/a.b.tar.url = example.org",
            "must match the pattern",
            {"downloads": {"data/a.b.tar": {"url": "https://example.org/corpus.tar.gz"}}},
            id="dots in a name",
        ),
        pytest.param(
            changed("corpora/dev/noise", {"snr_db": [3]}),
            "corpora.dev.noise.snr_db",
            "too short; it must be a list of 2",
            None,
            id="short pair",
        ),
    ],
)
def test_one_problem(raw: dict[str, Any], first_line: str, says: str, proposes: Any) -> None:
    message = error_of(raw)
    assert message.startswith("the configuration has 1 problem:")
    (problem,) = problems(message)
    assert problem.splitlines()[0] == first_line
    assert says in problem
    if proposes is None:
        assert "write:" not in problem
    else:
        assert written(problem) == proposes


def test_all_problems_are_in_one_message() -> None:
    raw = {
        "name": "small",
        "corpora": {"dev": {"adapter": "manifst"}, "other": {"adapter": "slurp", "audio_dir": "a"}},
        "asr": {"tiny": {"model": "./m", "seed": -1, "num_beam": 2}},
        "runs": [{"corpora": ["devel"], "asr": ["tiny"], "scoring": ["plain"]}],
        "scorings": {},
    }
    first_lines = [problem.splitlines()[0] for problem in problems(error_of(raw))]
    assert first_lines == [
        "corpora.dev.adapter = manifst",
        "corpora.other.annotations",
        "asr.tiny.seed = -1",
        "asr.tiny.num_beam = 2",
        "scorings = {}",
        "runs.0.corpora = devel",
        "runs.0.scoring = plain",
    ]


@pytest.mark.parametrize("raw", [[], "text", 3])
def test_a_configuration_that_is_no_mapping(raw: Any) -> None:
    assert "must be keys with values" in error_of(raw)


def test_validation_of_what_was_fed_back_changes_nothing() -> None:
    config = load_config(GOOD)
    assert load_config(config.model_dump(mode="json")) == config


def test_a_long_value_is_cut() -> None:
    (problem,) = problems(error_of(changed("asr/tiny/dtype", "x" * 1000)))
    assert len(problem.splitlines()[0]) < 150


def test_nearest_ignores_case_and_gives_up() -> None:
    assert nearest("WER", ["wer", "cer"]) == "wer"
    assert nearest("fp16", ["auto", "float16", "float32"], cutoff=0.5) == "float16"
    assert nearest("zzz", ["wer", "cer"]) is None


# Files --------------------------------------------------------------------------------------------


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


BASE = "name: base\nasr: {one: {model: ./a, seed: 1}, two: {model: ./b}}\nruns: [{asr: [one]}, {asr: [two]}]\n"


def test_the_base_is_read_alone_without_other_files(tmp_path: Path) -> None:
    base = write(tmp_path, "config.yaml", BASE)
    assert effective_raw([], base) == yaml.safe_load(BASE)


def test_sections_are_merged_and_lists_replaced(tmp_path: Path) -> None:
    base = write(tmp_path, "config.yaml", BASE)
    one = write(tmp_path, "one.yaml", "asr: {one: {seed: 2}, three: {model: ./c}}\nruns: [{asr: [three]}]\n")
    two = write(tmp_path, "two.yaml", "asr: {one: {seed: 3}, two: null}\n")
    assert effective_raw([one, two], base) == {
        "name": "base",
        "asr": {"one": {"model": "./a", "seed": 3}, "two": None, "three": {"model": "./c"}},
        "runs": [{"asr": ["three"]}],
    }


def test_a_file_with_a_name_stands_alone(tmp_path: Path) -> None:
    alone = write(tmp_path, "alone.yaml", "name: alone\nasr: {}\n")
    over = write(tmp_path, "over.yaml", "title: mine\n")
    assert effective_raw([alone, over], tmp_path / "not_there.yaml") == {
        "name": "alone",
        "asr": {},
        "title": "mine",
    }


def test_merging_is_what_snakemake_does(tmp_path: Path) -> None:
    from snakemake.common.configfile import load_configfile
    from snakemake.utils import update_config

    texts = [
        BASE,
        "asr: {one: 3, two: {model: {deep: 1}}}\ntitle: x\n",
        "asr: {one: {model: ./z}}\nruns: []\n",
    ]
    paths = [write(tmp_path, f"{index}.yaml", text) for index, text in enumerate(texts)]
    expected: dict[str, Any] = {}
    for path in paths:
        update_config(expected, load_configfile(path))
    assert effective_raw(paths[1:], paths[0]) == expected


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "`a` on line 1 and again on line 3", 3),
        ("asr:\n  x:\n    seed: 1\n    model: m\n    seed: 2\n", "`seed` on line 3 and again on line 5", 5),
        ("runs:\n  - {a: 1,\n     a: 2}\n", "`a` on line 2 and again on line 3", 3),
        ("a: 1\n\tb: 2\n", "a tab where YAML wants spaces", 2),
        ("a: 1\nb: [1, 2\n", "not valid YAML", 3),
        ("a: 1\n---\nb: 2\n", "several YAML documents", 2),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path: Path, text: str, what: str, line: int) -> None:
    path = write(tmp_path, "mine.yaml", text)
    with pytest.raises(UserError) as caught:
        read_config_file(path)
    assert what in caught.value.what
    assert str(caught.value.where).startswith(f"{path}, line {line}")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "- 1\n- 2\n", "just text\n"])
def test_a_file_without_keys(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, "mine.yaml", text)
    with pytest.raises(UserError, match="holds keys with values") as caught:
        read_config_file(path)
    assert caught.value.where == str(path)


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config file not found"):
        effective_raw([tmp_path / "none.yaml"], tmp_path / "base.yaml")
    (tmp_path / "latin.yaml").write_bytes("title: Prüfung\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_config_file(tmp_path / "latin.yaml")


def test_anchors_and_merge_keys_are_no_repetition(tmp_path: Path) -> None:
    text = "a: &common {seed: 1, model: m}\nb: {<<: *common, seed: 2}\nc: *common\n"
    path = write(tmp_path, "mine.yaml", text)
    assert read_config_file(path)["b"] == {"seed": 2, "model": "m"}


# What comes with the project ----------------------------------------------------------------------

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = [REPOSITORY / "config/config.yaml", *sorted((REPOSITORY / "config/experiments").glob("*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_load_and_stand_alone(path: Path) -> None:
    raw = read_config_file(path)
    config = load_config(raw)
    assert config.name == raw["name"]
    assert config.title
    lists = used_lists(config)
    assert ({corpus for corpus, _ in lists}, {asr for _, asr in lists}) == (set(config.corpora), set(config.asr))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_hub_models_and_checksums_are_pinned(path: Path) -> None:
    config = load_config(read_config_file(path))
    for variant in config.asr.values():
        assert not variant.is_hub_model or len(str(variant.revision)) == 40
    for item in config.downloads.values():
        assert item.url.startswith("https://")
