"""What counts as the code behind a script, on a small package made for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from utterflow import codedigest

HELPERS = '''"""Helpers."""

LIMIT = 10


def used(value):
    """Used by the script."""
    return inner(value) + LIMIT


def inner(value):
    return value + 1


def unused(value):
    return value - 1
'''
SCRIPT = """from utterflow.helpers import used


def main():
    print(used(1))


main()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package called utterflow, beside a folder of scripts."""
    root = tmp_path / "utterflow"
    root.mkdir()
    (root / "__init__.py").write_text('"""Package."""\n')
    monkeypatch.setattr(codedigest, "PACKAGE_ROOT", root)
    return root


def digest(package: Path, script: str = SCRIPT, **modules: str) -> str:
    """The digest of a script over modules given as `name=text` (`a__b` is a/b.py)."""
    for name, text in modules.items():
        path = package.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    file = package.parent / "script.py"
    file.write_text(script)
    codedigest.code_digest.cache_clear()
    codedigest._module.cache_clear()
    return codedigest.code_digest(file)


def test_same_code_same_digest(package: Path) -> None:
    assert digest(package, helpers=HELPERS) == digest(package, helpers=HELPERS)


@pytest.mark.parametrize(
    "change",
    [
        HELPERS.replace('"""Used by the script."""', '"""Says something else."""'),
        HELPERS.replace('"""Helpers."""', '"""More words."""'),
        HELPERS.replace("    return value + 1", "    # a comment\n\n    return value + 1  # and one more"),
    ],
    ids=["function docstring", "module docstring", "comments and blank lines"],
)
def test_words_for_people_do_not_count(package: Path, change: str) -> None:
    assert change != HELPERS
    assert digest(package, helpers=HELPERS) == digest(package, helpers=change)


@pytest.mark.parametrize(
    ("old", "new"),
    [("value + 1", "value + 2"), ("LIMIT = 10", "LIMIT = 11"), ("+ LIMIT", "- LIMIT")],
    ids=["what a used function calls", "a constant it reads", "the used function"],
)
def test_reached_code_counts(package: Path, old: str, new: str) -> None:
    assert digest(package, helpers=HELPERS) != digest(package, helpers=HELPERS.replace(old, new))


def test_unreached_definitions_do_not_count(package: Path) -> None:
    changed = HELPERS.replace("value - 1", "value - 2") + "\n\ndef added():\n    return 3\n"
    assert digest(package, helpers=HELPERS) == digest(package, helpers=changed)


def test_a_script_counts_whole(package: Path) -> None:
    longer = SCRIPT + "\n\ndef never_called():\n    return 1\n"
    assert digest(package, helpers=HELPERS) != digest(package, longer, helpers=HELPERS)


def test_statements_that_run_at_import_count(package: Path) -> None:
    registered = HELPERS + "\nTABLE = {}\nTABLE['a'] = unused\n"
    before = digest(package, helpers=registered)
    assert before != digest(package, helpers=registered.replace("TABLE['a']", "TABLE['b']"))
    assert before != digest(package, helpers=registered.replace("value - 1", "value - 2"))


@pytest.mark.parametrize(
    "script",
    [
        "def main():\n    from utterflow.helpers import used\n    used(1)\n",
        "def main():\n    import utterflow.helpers as h\n    h.used(1)\n",
        "import utterflow.helpers\n\nutterflow.helpers.used(1)\n",
        "from utterflow import helpers\n\nhelpers.used(1)\n",
        "from utterflow.helpers import used as f\n\nf(1)\n",
        "import utterflow.other\nimport utterflow.helpers\nimport utterflow.third\nutterflow.helpers.used\n",
        "from utterflow.middle import used\n\nused(1)\n",
        "from utterflow.nested.near import call\n\ncall()\n",
        "from utterflow.nested.far import call\n\ncall()\n",
        "try:\n    from utterflow.helpers import used\nexcept ImportError:\n    used = None\n",
    ],
    ids=[
        "import in a function",
        "module imported in a function",
        "import of a dotted name",
        "module from package",
        "renamed",
        "several dotted imports",
        "re-exported",
        "relative import",
        "relative import of a parent",
        "guarded import",
    ],
)
def test_every_form_of_import_is_followed(package: Path, script: str) -> None:
    modules = {
        "other": "X = 1\n",
        "third": "Y = 1\n",
        "middle": "from utterflow.helpers import used\n",
        "nested____init__": "",
        "nested__own": "from utterflow.helpers import used\n",
        "nested__near": "from .own import used\n\n\ndef call():\n    used(1)\n",
        "nested__far": "from ..helpers import used\n\n\ndef call():\n    used(1)\n",
    }
    before = digest(package, script, helpers=HELPERS, **modules)
    after = digest(package, script, helpers=HELPERS.replace("value + 1", "value + 2"), **modules)
    assert before != after


def test_other_packages_are_left_alone(package: Path) -> None:
    script = "import json\nfrom pathlib import Path\n\nprint(json, Path)\n"
    digest(package, script, helpers=HELPERS)
    assert codedigest.reachable(package.parent / "script.py") == {"script.py:*"}


def test_reachable_names_definitions(package: Path) -> None:
    digest(package, helpers=HELPERS)
    assert codedigest.reachable(package.parent / "script.py") == {
        "script.py:*",
        "script.py:main",
        "helpers.py:used",
        "helpers.py:inner",
        "helpers.py:LIMIT",
    }


def test_classes_bring_bases_and_decorators(package: Path) -> None:
    module = "def mark(c):\n    return c\n\n\nclass Base:\n    size = 1\n\n\n@mark\nclass Used(Base):\n    pass\n"
    script = "from utterflow.shapes import Used\n\nUsed()\n"
    before = digest(package, script, shapes=module)
    assert before != digest(package, script, shapes=module.replace("size = 1", "size = 2"))
    assert before != digest(package, script, shapes=module.replace("return c", "return None"))


def test_circular_imports_end(package: Path) -> None:
    one = "from utterflow.two import b\n\n\ndef a():\n    return b()\n"
    two = "from utterflow.one import a\n\n\ndef b():\n    return a()\n"
    script = "from utterflow.one import a\n\na()\n"
    assert digest(package, script, one=one, two=two) != digest(
        package, script, one=one, two=two.replace("return a()", "return a")
    )


def test_the_digest_does_not_depend_on_where_the_script_lies(tmp_path):
    digests = set()
    for folder in ("a", "z"):
        (tmp_path / folder).mkdir()
        script = tmp_path / folder / "rule.py"
        script.write_text("from utterflow.files import write_json\nfrom utterflow.errors import UserError\n")
        digests.add(codedigest.code_digest(script))
    assert len(digests) == 1


def test_descriptions_of_config_keys_do_not_count(tmp_path):
    digests = []
    for number, (default, words) in enumerate([(1, "one"), (1, "other"), (2, "one")]):
        script = tmp_path / str(number) / "rule.py"
        script.parent.mkdir()
        lines = [
            "from x import key, required",
            f'a = key({default}, "{words}", "{words}", ge=0)',
            f'b = required("{words}", "r")',
        ]
        script.write_text("\n".join(lines))
        digests.append(codedigest.code_digest(script))
    assert digests[0] == digests[1] != digests[2]
