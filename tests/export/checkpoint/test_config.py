"""Configurations are read as mmengine reads them, but never run; what only Python could tell is refused by name."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ASSETS

from denseport.export.checkpoint.config import apply_config, look_up, parse_config, read_config
from denseport.export.checkpoint.file import Checkpoint, read_checkpoint
from denseport.export.checkpoint.pipeline import image_steps
from denseport.export.checkpoint.python_data import TEXT_LIMIT, Unknown
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.settings import inference_of, reduces_zero_label
from denseport.export.errors import CheckpointError

DATA = json.loads((ASSETS / "configs.json").read_text())


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / next(iter(files))


def known(value: Any) -> Any:
    """As JSON would have it, without what is unknown."""
    if isinstance(value, dict):
        return {str(key): known(item) for key, item in value.items() if not isinstance(item, Unknown)}
    return [known(item) for item in value] if isinstance(value, (list, tuple)) else value


def test_a_file_and_its_bases_are_what_mmengine_makes_of_them(tmp_path: Path) -> None:
    path = write(tmp_path, {name: "\n".join(lines) for name, lines in DATA["files"].items()})
    config = read_config(path)
    expected = dict(DATA["child.py"])
    del expected["width"]  # assigned by unpacking, which is not read
    assert known(config) == expected
    assert isinstance(config["width"], Unknown) and isinstance(config["layers"], Unknown)


def test_a_configuration_is_read_as_data() -> None:
    text = r"""
import os
a = dict(b=[1, -2.5, (3,)], c=dict(d={'e': None, 4: True}))
danger = os.system('false')
path = 'C:\data'
unhashable = {[1]: 2}
later = __import__('os')
z: str = 'kept'
"""
    config = parse_config(text)
    assert known(config) == {
        "a": {"b": [1, -2.5, [3]], "c": {"d": {"e": None, "4": True}}},
        "path": r"C:\data",
        "z": "kept",
    }
    assert {name for name, value in config.items() if isinstance(value, Unknown)} == {
        *("os", "danger", "unhashable", "later")
    }
    assert look_up(config, "a", "c", "d", "e", default=5) is None
    assert look_up(config, "a", "b", "c", default=5) == 5


@pytest.mark.parametrize(
    "value",
    [
        *(
            "heads()",
            "[x for x in y]",
            "dict(**more)",
            "missing",
            "1 if True else 2",
            "not 1",
            "1 / 0",
            "{}['a']",
            "2**3",
        ),
        *("f'{1:3}'", "'%d' % 3", "'a' * 3", "10 ** 10 ** 10", "lambda: 1", "dict(a=1, **dict(a=2))", "[1][5]", "x.y"),
    ],
)
def test_what_is_no_data_is_refused_when_it_is_asked_for(value: str) -> None:
    config = parse_config(f"other = 1\nmodel = dict(\n    heads={value}, dims=3)", "c.py")
    assert look_up(config, "model", "dims") == 3 and config["other"] == 1
    with pytest.raises(CheckpointError, match=r"^c\.py:3: model\.heads is not plain data: heads=") as caught:
        look_up(config, "model", "heads")
    assert "work_dirs" in caught.value.remedy
    with pytest.raises(CheckpointError, match="heads"):
        look_up(config, "model", "heads", "inner")
    unknown = config["model"]["heads"]
    for use in (bool, int, float, str, len, list, hash, lambda x: x == 1, lambda x: x["a"], lambda x: x.get("a")):
        with pytest.raises(CheckpointError, match="not plain data"):
            use(unknown)
    with pytest.raises(CheckpointError, match=r"steps is not plain data"):
        look_up(parse_config(f"steps = [1, {value}]"), "steps")


@pytest.mark.parametrize(
    "code",
    [
        *("model['heads'] = 4", "model.update(heads=4)", "x = model.pop('heads')", "del model['heads']", "model |= {}"),
        *("model['heads']: int = 4", "x, model['heads'] = 1, 2", "x = model['heads'] = 4"),
        *("for k in model: model[k] = 4", "if 1: model = dict(heads=4)", "def model(): pass", "import model"),
        *("other['n'].clear()", "x = [f(other)]", "same.clear()", "with open(same) as f: pass", "(model := dict())"),
        *("x = (model := 4)", "x = [1, (model := dict(heads=4))]"),
        *("exec('model = 1')", "globals()['model'] = 4", "from x import *", "x = vars()"),
    ],
)
def test_what_code_may_have_changed_is_unknown(code: str) -> None:
    text = f"model = dict(heads=3)\nsame = model\nother = dict(n=model)\nfree = [3]\nn = len(free)\n{code}"
    with pytest.raises(CheckpointError, match=":6: "):
        config = parse_config(text, "c.py")
        assert look_up(config, "free") == [3]
        look_up(config, "model", "heads")


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "circle": ({"a.py": "_base_ = 'b.py'", "b.py": "_base_ = ['a.py']"}, "is its own base"),
    "itself": ({"a.py": "_base_ = 'a.py'"}, "is its own base"),
    "missing": ({"a.py": "_base_ = 'b.py'"}, r"b\.py: no such file"),
    "folder": ({"a.py": "_base_ = 'b.py'", "b.py/c.py": ""}, r"b\.py: not an ordinary file"),
    "other file": ({"a.py": "_base_ = '/etc/passwd'"}, r"/etc/passwd: a configuration is a \.py or \.json file"),
    "device": ({"a.py": "_base_ = '/dev/zero'"}, "a configuration is"),
    "package": ({"a.py": "_base_ = 'mmseg::_base_/models/x.py'"}, "in another package"),
    "number": ({"a.py": "_base_ = [3]"}, "_base_ 3 is not a path"),
    "computed": ({"a.py": "_base_ = path()"}, r"a\.py:1: _base_ is not plain data"),
    "environment": ({"a.py": "_base_ = '{{$HOME:x}}.py'"}, r"a\.py:1: _base_ is not plain data"),
    "new style": (
        {"a.py": "from mmengine.config import read_base\nwith read_base():\n  from .b import *"},
        r"a\.py:1: .*read_base",
    ),
    "relative": ({"a.py": "from .b import model"}, "made by code"),
    "twice": ({"a.py": "_base_ = ['b.py', 'c.py']", "b.py": "x = 1", "c.py": "x = 2"}, "two of its bases define x"),
    "dict over list": (
        {"a.py": "_base_ = 'b.py'\nx = dict(y={})", "b.py": "x = dict(y=[])"},
        r"x\.y is a dict here and list",
    ),
    "dict over None": ({"a.py": "_base_ = 'b.py'\nx = {}", "b.py": "x = None"}, "x is a dict here and NoneType"),
    "index": ({"a.py": "_base_ = 'b.py'\nx = {0: 1}", "b.py": "x = [0]"}, "x is a dict here and list"),
    "changes its base": ({"a.py": "_base_ = 'b.py'\n_base_.x.clear()", "b.py": "x = {}"}, r"a\.py:2: "),
    "syntax": ({"a.py": "_base_ = 'b.py'", "b.py": "x = 1\ny = ("}, r"b\.py:2: not Python"),
    "suffix": ({"a.yaml": "x: 1"}, r"a\.yaml: a configuration is a \.py or \.json file"),
    "json": ({"a.json": "[1]"}, "holds a list"),
    "no json": ({"a.json": "{"}, "not JSON"),
    "said twice": ({"a.json": '{"depth": "relative", "depth": "metres"}'}, "'depth' is said twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_cannot_be_read_as_data_are_refused(tmp_path: Path, name: str) -> None:
    files, words = REFUSED[name]
    with pytest.raises(CheckpointError, match=words) as caught:
        read_config(write(tmp_path, files))
    assert caught.value.remedy


def test_an_alias_of_the_base_that_code_changes_is_unknown(tmp_path: Path) -> None:
    config = read_config(
        write(tmp_path, {"a.py": "_base_ = 'b.py'\nm = _base_.x\nm.clear()", "b.py": "x = dict(y=1)\nz = 2"})
    )
    assert config["z"] == 2
    with pytest.raises(CheckpointError, match=r"a\.py:3"):
        look_up(config, "x", "y")


def test_a_configuration_in_a_checkpoint_must_be_whole() -> None:
    for text, words in (
        ("_base_ = 'x.py'", "refers to other files"),
        ("model = dict(", "not Python"),
        ("a = 1 2", ":1: "),
    ):
        with pytest.raises(CheckpointError, match=words):
            parse_config(text, "the text")


HOSTILE = {
    "power": "model = 10 ** 10 ** 10",
    "text": "model = 'a' * 10 ** 9",
    "itself": "model = model",
    "lists": "a = [0] * 1000\nb = a * 1000\nc = b * 1000\nmodel = c * 1000",
    "sums": "a = 'abcdefgh'\n" + "a = a + a\n" * 60 + "model = a",
    "laughs": "a = [0, 0]\n" + "a = [a, a, a, a, a, a]\n" * 40 + "model = a",
    "printed": "a = [0, 0]\n" + "a = [a, a, a, a, a, a]\n" * 12 + "model = f'{a}'",
    "dicts": "a = dict(x=1)\n" + "a = dict(x=a, y=a, **a)\n" * 40 + "model = a",
    "texts": "a = 'x'\n" + "a = f'{a}{a}{a}'\n" * 60 + "model = a",
    "numbers": "a = 9\n" + "a = a * a\n" * 400 + "model = a",
    "digits": "model = " + "9" * 500_000,
    "hexadecimal": "a = 0x" + "f" * 500_000 + "\n" + "".join(f"b{i} = -a\n" for i in range(5000)) + "model = a * a",
    "slices": "a = [0] * 100000\n" + "".join(f"b{i} = a[:]\n" for i in range(5000)) + "model = b1",
    "brackets": "model = " + "[" * 100_000,
    "nested": "a = 1\n" + "a = [a]\n" * 20_000 + "model = a",
    "signs": "model = " + "-" * 100_000 + "1",
    "chain": "model = a" + ".a" * 100_000,
    "plus": "model = 1" + " + 1" * 100_000,
    "calls": "model = a" + "()" * 50_000,
    "changes": "a = [0]\n" + "a = [a, a]\nf(a)\n" * 3000 + "model = a",
    "bases": "_base_ = ['hostile.py'] * 100000",
    "long": "model = 1\n" * 200_000,
    "null": "model = '\0'",
}
READ = """
import resource, sys, time
from pathlib import Path
from denseport.export.checkpoint.config import look_up, read_config
from denseport.export.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
start = time.process_time()
try:
    print("read", type(look_up(read_config(Path(sys.argv[1])), "model")).__name__)
except CheckpointError as err:
    print("refused", err.message[-100:])
print(time.process_time() - start)
"""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_takes_little_time_and_memory(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, {"hostile.py": HOSTILE[name]})
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]
    *_, said, seconds = done.stdout.splitlines()
    assert said.startswith("refused") and float(seconds) < 5, done.stdout
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 2**30, "the limit is the child's"


def test_fields_of_bare_weights(tmp_path: Path) -> None:
    fields = {"num_heads": 3, "out_indices": [0, 1, 2, 3], "readout": "add", "mean": [1, 2.5, 3], "norm_eps": 1e-6}
    path = write(tmp_path, {"a.json": json.dumps(fields)})
    config, complete, warnings = apply_config(path, None)
    assert not complete and not warnings
    assert config["model"] == {
        "backbone": {"num_heads": 3, "out_indices": [0, 1, 2, 3], "norm_cfg": {"eps": 1e-6}},
        "decode_head": {"readout_type": "add"},
        "data_preprocessor": {"mean": [1, 2.5, 3]},
    }
    own = parse_config("model = dict(backbone=dict(num_heads=6, depth=2), neck=None)")
    config, complete, warnings = apply_config(path, own)
    assert complete and config["model"]["backbone"]["depth"] == 2 and config["model"]["backbone"]["num_heads"] == 3
    assert len(warnings) == 1 and "model.backbone.num_heads" in warnings[0] and "depth" not in warnings[0]
    for bad, words in (
        ({"heads": 3}, "'heads' is neither"),
        ({"num_heads": "3"}, "num_heads is '3'"),
        ({"mean": 3}, "mean is 3"),
    ):
        with pytest.raises(CheckpointError, match=words):
            apply_config(write(tmp_path, {"b.json": json.dumps(bad)}), None)
    for bad in ({"num_heads": True}, {"out_indices": [1.5]}, {"out_indices": [1, "2"]}, {"align_corners": 1}):
        with pytest.raises(CheckpointError, match="Give a value like"):
            apply_config(write(tmp_path, {"b.json": json.dumps(bad)}), None)


def test_a_json_configuration(tmp_path: Path) -> None:
    path = write(tmp_path, {"a.json": '{"_base_": "b.py", "model": {"n": 1}}', "b.py": "model = dict(n=2, m=3)"})
    assert apply_config(path, None) == ({"model": {"n": 1, "m": 3}}, True, [])


def test_differences_in_what_is_used_are_said(tmp_path: Path) -> None:
    own = parse_config("model = dict(pretrained='x', a=[1, (2, 3)], train_cfg=dict(), b=1)\noptimizer = 3")
    same = write(tmp_path, {"a.py": "model = dict(pretrained=None, a=(1, [2, 3]), b=1)\noptimizer = 4"})
    assert apply_config(same, own)[2] == []
    other = write(tmp_path, {"a.py": "model = dict(a=[1, [2, 4]], b=f())"})
    (warning,) = apply_config(other, own)[2]
    assert "model.a[1][1]" in warning and "model.b" in warning
    for one, another in (("1", "dict(x=1)"), ("dict(x=1)", "1"), ("[1]", "dict(x=1)")):
        own, other = parse_config(f"model = dict(a={one})"), write(tmp_path, {"a.py": f"model = dict(a={another})"})
        assert "in model.a:" in apply_config(other, own)[2][0]


def test_a_file_may_have_as_many_characters_as_the_limit(tmp_path: Path) -> None:
    text = "model = 1\n".ljust(TEXT_LIMIT, "#")
    assert read_config(write(tmp_path, {"a.py": text})) == {"model": 1}
    write(tmp_path, {"a.py": f"{text}#"})
    with pytest.raises(CheckpointError, match="above"):
        read_config(tmp_path / "a.py")


def test_bare_weights_and_a_configuration_say_what_a_checkpoint_says(shared: Path, tmp_path: Path) -> None:
    """Of every case that mmsegmentation ran: the same labels, network, test path and refusals."""

    def said(checkpoint: Checkpoint) -> list[Any]:
        found = [checkpoint.classes, checkpoint.palette, checkpoint.ignore_index, reduces_zero_label(checkpoint)]
        for read in (
            lambda: recognise(checkpoint).spec,
            lambda: image_steps(checkpoint),
            lambda: inference_of(checkpoint),
        ):
            try:
                found.append(read())
            except CheckpointError as err:
                found.append(str(err).replace(str(checkpoint.path), ""))
        return found

    cases = sorted((shared / "cases" / "mmseg").glob("*.pth"))
    for case in cases:
        data = torch.load(case, weights_only=True)
        about = data["meta"]["dataset_meta"]
        labels = {key: about[key] for key in ("classes", "palette")}
        dataset = f"dict(metainfo={labels!r}, reduce_zero_label={about['reduce_zero_label']})"
        write(tmp_path, {"base.py": data["meta"]["cfg"]})
        config = write(tmp_path, {"c.py": f"_base_ = 'base.py'\ntest_dataloader = dict(dataset={dataset})"})
        torch.save(data["state_dict"], tmp_path / "bare.pth")
        assert said(read_checkpoint(tmp_path / "bare.pth", config)) == said(read_checkpoint(case)), case.name
    assert len(cases) > 20
