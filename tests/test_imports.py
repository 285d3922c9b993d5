"""The shape of the package: imports point one way, files and functions stay small, what is public explains itself."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

import kquant
from kquant import targets
from kquant.runtime.interpreters import RUNTIMES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kquant"
FILES = sorted(PACKAGE.rglob("*.py"))

# The flow, bottom up: each folder imports from rows above its own only, and folders of one row never import each other.
ORDER = (
    ("core", "moved"),
    ("arithmetic",),
    ("graph", "files", "targets"),
    ("recipe",),
    ("layers",),
    ("ops",),
    ("views", "train", "exact"),
    ("calibration", "masking", "tflite"),
    ("registration",),
    ("correct", "shrink", "runtime"),
    ("prepare", "callbacks"),
    ("analysis", "migrate", "detecting", "transcribing"),
    ("exporting",),
    ("search", "projects", "sizing"),
    ("placing", "on_ray"),
    ("report",),
    ("app",),
    ("__main__",),
)
ROW = {name: row for row, names in enumerate(ORDER) for name in names}


LATER = re.compile(r"kquant\.([\w.]+):\w+")  # `module:function` in a table, imported when it is asked for


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def offenders(found: Callable[[Path], object], files: Iterable[Path] = FILES) -> dict[str, object]:
    """What a question finds, by file, where it finds something."""
    return {str(path.relative_to(PACKAGE)): said for path in files if (said := found(path))}


def part(path: Path) -> str:
    """The file or folder right under the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Parts of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}: relative import in line {node.lineno}")
            module = (node.module or "").split(".")
            if module[0] == "kquant":
                found |= {module[1]} if len(module) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {name[1] for name in names if name[0] == "kquant" and len(name) > 1}
            if any(name == ["kquant"] for name in names):
                raise ValueError(f"{path}: `import kquant` reaches everything; import what is needed")
        elif isinstance(node, ast.Constant) and (later := LATER.fullmatch(str(node.value))):
            found.add(later[1].split(".")[0])
    return found - {"__version__"}


def test_every_part_has_a_row() -> None:
    assert {part(path) for path in FILES} - {"__init__"} == set(ROW)


def test_imports_point_one_way() -> None:
    def back(path: Path) -> set[str]:
        here = part(path)
        return {name for name in imported(path) if name != here and ROW.get(name, -1) >= ROW[here]}

    assert offenders(back, [path for path in FILES if part(path) != "__init__"]) == {}, "from its own row or below"


def test_inside_a_folder_imports_have_no_circle() -> None:
    for folder in {name for row in ORDER for name in row}:
        modules = {
            f"kquant.{folder}.{path.stem}": path for path in (PACKAGE / folder).glob("*.py") if path.stem != "__init__"
        }
        after: dict[str, set[str]] = {}
        for name, path in modules.items():
            nodes = [n for n in ast.walk(parsed(path)) if isinstance(n, ast.ImportFrom) and n.module in modules]
            after[name] = {str(n.module) for n in nodes}
        while after:
            free = [name for name, needs in after.items() if not needs & set(after)]
            assert free, f"circle among {sorted(after)}"
            for name in free:
                del after[name]


@pytest.mark.parametrize("folder", ["kquant", "tests", "benchmarks", "examples"])
def test_what_is_imported_from_here_exists(folder: str) -> None:
    missing = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            here = [name for name in names if name.split(".")[0] in ("kquant", "tests", "benchmarks", "examples")]
            missing |= {(str(path.relative_to(ROOT)), name) for name in here if not _is_module(name)}
    assert not missing


def _is_module(name: str) -> bool:
    """A file or folder of this tree: a module of 0.1 that `kquant.moved` serves is for users alone."""
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_files_and_functions_are_small() -> None:
    def long(path: Path) -> dict[str, int]:
        lines = {
            node.name: node.end_lineno - node.lineno + 1 - _docstring_lines(node)
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.FunctionDef)
        }
        return {name: n for name, n in lines.items() if n > 50}

    assert offenders(long) == {}
    assert offenders(lambda path: max(0, len(path.read_text().splitlines()) - 500)) == {}


def _docstring_lines(node: ast.FunctionDef) -> int:
    first = node.body[0]
    has = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return first.end_lineno - first.lineno + 1 if has else 0


def test_no_assert_in_the_package() -> None:
    def asserts(path: Path) -> list[int]:
        return [node.lineno for node in ast.walk(parsed(path)) if isinstance(node, ast.Assert)]

    assert offenders(asserts) == {}


def test_public_functions_have_docstrings_and_types() -> None:
    assert offenders(lambda path: not ast.get_docstring(parsed(path))) == {}, "a file says what it is for"
    assert offenders(lambda path: list(_unexplained(parsed(path)))) == {}


def _unexplained(tree: ast.Module) -> Iterator[str]:
    for node in _public(tree):
        where = f"{node.lineno} {node.name}"
        if not ast.get_docstring(node):
            yield f"{where} has no docstring"
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if untyped:
                yield f"{where}: {untyped} without a type"
            if node.returns is None:
                yield f"{where}: no return type"


def _public(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    """Public functions, classes, and methods of public classes."""
    found: list[ast.FunctionDef | ast.ClassDef] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append(node)
            if isinstance(node, ast.ClassDef):
                found += [n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    return found


def test_names_say_what_is_inside() -> None:
    stems = {path.stem for path in FILES}
    assert not stems & {"utils", "util", "common", "base", "manager", "helpers", "misc"}
    assert not {stem for stem in stems if stem.endswith(("_v2", "_new", "_old"))}


def test_hardly_anything_is_called_found() -> None:
    """That a search found it is the least that a reader wants to know: a name says what it is. These are left."""
    fields = ("id", "arg", "attr", "name")
    every = [node for path in FILES for node in ast.walk(parsed(path))]
    assert sum("found" in [getattr(node, field, None) for field in fields] for node in every) <= 24


def test_no_module_is_called_like_something_else() -> None:
    """`import kquant.x as y` must not bind a function, nor a script of the package hide the standard library."""
    stems = {path.parent.name if path.stem == "__init__" else path.stem for path in FILES} - {"kquant"}
    assert stems & set(kquant.__all__) == {"callbacks", "migrate", "on_ray", "report"}  # which are those modules
    assert not stems & set(sys.stdlib_module_names)


# What a folder's first words say, whatever stands between.
SAID = {
    "what comes in": r"\bcomes? in\b",
    "what goes out": r"\bgo(es)? out\b",
    "where to add": r"\ba new [^.:;]* (is|gets|goes|belongs)\b",
}
NAMED = re.compile(r"`([a-zA-Z_./]+)`")


def test_a_folder_says_what_it_is_for() -> None:
    """What comes in, what goes out, where to add; and the places that it names exist."""

    def missing(folder: Path) -> list[str]:
        text = " ".join((ast.get_docstring(parsed(folder / "__init__.py")) or "").split())
        said = [words for words, pattern in SAID.items() if not re.search(pattern, text, re.IGNORECASE)]
        return said + sorted(set(NAMED.findall(text)) - {n for n in NAMED.findall(text) if _is_named(n, folder)})

    assert offenders(missing, sorted({path.parent for path in FILES} - {PACKAGE})) == {}


def _is_named(name: str, folder: Path) -> bool:
    """A file, or a name in the code, of a folder; of the package where the name says where."""
    place = PACKAGE if "." in name or "/" in name else folder
    last = re.split(r"[./]", name.strip("/"))[-1]
    return any(last in (path.name, path.stem) for path in place.rglob("*")) or any(
        re.search(rf"\b{last}\b", code(path)) for path in FILES if place in path.parents
    )


@cache
def code(path: Path) -> str:
    """A file without its docstring."""
    tree = parsed(path)
    return ast.unparse(ast.Module(tree.body[1:] if ast.get_docstring(tree) else tree.body, []))


# Where names are no targets: what implements the runtimes and their arithmetic, and Keras' exporter of that name.
NAMES_ELSEWHERE = ("targets", "runtime", "arithmetic", "layers/conversion.py")


def test_no_stage_knows_a_target_by_name() -> None:
    """What differs between targets is said in their files, so that a new one is a file and nothing else."""
    names = {*targets.names(), *RUNTIMES}
    stages = [path for path in FILES if not str(path.relative_to(PACKAGE)).startswith(NAMES_ELSEWHERE)]
    assert offenders(lambda path: compared(parsed(path), names), stages) == {}


def compared(tree: ast.AST, names: set[str]) -> list[str]:
    """Comparisons with one of these names, matches of one, and tables that have one as key."""
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare | ast.MatchValue | ast.Dict)
        for part in ([key for key in node.keys if key] if isinstance(node, ast.Dict) else [node])
        if any(isinstance(leaf, ast.Constant) and leaf.value in names for leaf in ast.walk(part))
    ]


@pytest.mark.parametrize(
    "line",
    [
        "x = target.name == 'tflm'",
        "x = 'tflm' in target.runtimes",
        "x = name not in ('litert', 'ethos-u')",
        "ROUNDING = {'tflm': 'double'}",
        "match name:\n    case 'ethos-u':\n        pass",
    ],
)
def test_names_of_targets_are_noticed(line: str) -> None:
    assert len(compared(ast.parse(line), {*targets.names(), *RUNTIMES})) == 1
    assert compared(ast.parse("quantize(model, target='tflm')"), {"tflm"}) == []


ROOM = PACKAGE / "graph" / "keras_private.py"
TENSORFLOW = PACKAGE / "graph" / "tensorflow_private.py"  # the same of TensorFlow, which is one switch
# The fields of a namedtuple, and the end of a process: what Python documents under these names.
DOCUMENTED = {"_fields", "_exit"}


def test_what_keras_does_not_export_stands_in_one_file() -> None:
    """And what a module of the package keeps to itself is read by that module alone."""
    others = [path for path in FILES if path not in (ROOM, TENSORFLOW)]
    assert offenders(lambda path: foreign(parsed(path)), others) == {}
    assert "keras" not in code(TENSORFLOW) and len(foreign(parsed(TENSORFLOW))) == 1


# Private names of others than Keras that tests read: of os, of typing, of the interpreters, of flatbuffers.
OF_OTHERS = {"_exit", "_get_ops_details", "_get_protocol_attrs", "_tab"}
# Keras exports its builders of large models, not those of small ones.
NOT_EXPORTED = {
    "tests/shrink/test_prune_channels.py": {"keras.src.applications.efficientnet", "keras.src.applications.resnet"}
}


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "examples"])
def test_tests_and_benchmarks_ask_the_same_file(folder: str) -> None:
    """They may look into kquant, not into Keras."""
    found = {}
    for path in set((ROOT / folder).rglob("*.py")) - {Path(__file__)}:
        where = str(path.relative_to(ROOT))
        texts = {text.split(": ", 1)[1] for text in foreign(parsed(path))} - NOT_EXPORTED.get(where, set())
        found[where] = set(filter(of_keras, texts))
    assert {where: texts for where, texts in found.items() if texts} == {}


def of_keras(text: str) -> bool:
    """True for an expression with a private name that is neither kquant's nor one of others."""
    names = {name for name in re.findall(r"\w+", text) if _is_private(name)}
    return "src" in text.split(".") or bool(names - own_names() - OF_OTHERS)


@cache
def own_names() -> frozenset[str]:
    """Names with an underscore that the package defines."""
    nodes = [node for path in FILES if path != ROOM for node in ast.walk(parsed(path))]
    names = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    names |= {n.attr for n in nodes if isinstance(n, ast.Attribute) and _is_of_self(n.value)}
    return frozenset(filter(_is_private, names))


def foreign(tree: ast.AST) -> list[str]:
    """Places where a file reads `keras.src`, or names with an underscore that are not its own."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_of_self(node.value)}
    return [f"{node.lineno}: {text}" for node in ast.walk(tree) for text in _foreign(node, own)]


def _foreign(node: ast.AST, own: set[str]) -> list[str]:
    if isinstance(node, ast.Attribute):
        inside = node.attr == "src" and ast.unparse(node.value) == "keras"
        hidden = _is_private(node.attr) and not _is_of_self(node.value) and node.attr not in own | DOCUMENTED
        return [ast.unparse(node)] if inside or hidden else []
    if isinstance(node, ast.ImportFrom | ast.Import):
        start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        names = [f"{start}{alias.name}" for alias in node.names]
        return [n for n in names if f"{n}.".startswith("keras.src.") or any(map(_is_private, n.split(".")))]
    if isinstance(node, ast.Constant):  # in `vars(x)[...]`, in a table of names
        return [node.value] if node.value in kept_in_the_room() else []
    if isinstance(node, ast.Call) and len(node.args) > 1 and getattr(node.func, "id", "").endswith("attr"):
        name = node.args[1].values[0] if isinstance(node.args[1], ast.JoinedStr) else node.args[1]
        text = name.value if isinstance(name, ast.Constant) else ""
        return [ast.unparse(node)] if _is_private(text) and text not in own | DOCUMENTED else []
    return []


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_of_self(node: ast.AST) -> bool:
    return ast.unparse(node) in ("self", "cls", "super()")


@cache
def kept_in_the_room() -> frozenset[str]:
    """Names with an underscore that `keras_private` reads."""
    nodes = list(ast.walk(parsed(ROOM)))
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in parts]
    names = [n.attr for n in nodes if isinstance(n, ast.Attribute)]
    return frozenset(filter(_is_private, (*texts, *names)))


def test_the_room_says_what_it_relies_on() -> None:
    functions = [node for node in parsed(ROOM).body if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions if "Relies on" not in (ast.get_docstring(f) or "")] == []


@pytest.mark.parametrize(
    "line",
    [
        "from keras.src.ops.node import Node",
        "from keras.src import backend",
        "from keras import src",
        "import keras.src.backend",
        "keras.src.backend.AutocastScope",
        "model._flatten_layers()",
        "t._keras_history.operation",
        "self.layer._tracker.locked",
        "getattr(layer, '_metrics', None)",
        "hasattr(op, '_keras_mask')",
        "setattr(op, f'_{name}', 1)",
        "vars(layer)['_layers']",
        "SKIPPED = ('_inbound_nodes', '_lock')",
        "from kquant.ops.pool import _window",
    ],
)
def test_what_is_not_exported_is_noticed(line: str) -> None:
    assert foreign(ast.parse(line))


def test_own_names_with_an_underscore_are_no_fault() -> None:
    lines = ["self._rows(x)", "super()._rows(x)", "def _rows(x): ...\ndef f(book): return book._rows(1)"]
    lines += ["getattr(x, '__name__', '')", "hasattr(x, '_fields')", "model.input", "name = f'{op.name}_gate'"]
    assert [line for line in lines if foreign(ast.parse(line))] == []


WRITERS = {"write_text", "write_bytes", "tofile", "savetxt", "save_weights", "symlink_to", "hardlink_to", "write_file"}
WRITERS |= {"dump", "mkstemp", "NamedTemporaryFile", "copyfile", "copytree", "copy2", "rename", "imsave"}
ARCHIVES = {"save", "savez", "savez_compressed", "savefig"}  # into memory, or where results are made
OPENERS, MOVERS = {"open", "fdopen", "ZipFile", "File"}, {"replace", "move"}
WRITTEN_ELSEWHERE = {"files/atomic.py", "files/leftovers.py"}
WRITTEN_ELSEWHERE |= {"correct/sweep.py"}  # tensors that wait in a temporary folder
WRITTEN_ELSEWHERE |= {"files/hdf5_copy.py", "files/keras_files.py"}  # copies of models, in temporary folders
WRITTEN_ELSEWHERE |= {"on_ray/shipping.py"}  # models on their way, likewise
WRITTEN_ELSEWHERE |= {
    "migrate/old_files.py",
    "migrate/tf_keras_reader.py",
}  # likewise, and what the other process found


def test_results_are_written_in_one_place() -> None:
    """`kquant.files.atomic` writes files whole; whoever else opens one for writing can be killed in the middle."""
    others = [path for path in FILES if str(path.relative_to(PACKAGE)) not in WRITTEN_ELSEWHERE]
    assert offenders(lambda path: writes(parsed(path)), others) == {}


def writes(tree: ast.AST) -> list[str]:
    """Calls that write a file of their own."""
    memory = {
        t.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.value) in ("io.BytesIO()", "io.StringIO()")
        for t in node.targets
        if isinstance(t, ast.Name)
    }
    memory |= {  # `with results.making(path) as made`
        item.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        for item in node.items
        if isinstance(item.context_expr, ast.Call)
        and ast.unparse(item.context_expr.func).endswith(".making")
        and isinstance(item.optional_vars, ast.Name)
    }
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _writes(node, memory)
    ]


def _writes(call: ast.Call, memory: set[str]) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in OPENERS | MOVERS | WRITERS | ARCHIVES:
        return False
    texts = [ast.unparse(a) for a in (*call.args, *(k.value for k in call.keywords))]
    if name in OPENERS:
        writing = re.compile(r"'[rbt+]*[wax+][rwabxt+]*'|.*O_CREAT.*")
        elsewhere = {"os.dup(1)", "os.dup(2)", *memory} & set(texts[:1])
        return not elsewhere and any(map(writing.fullmatch, texts))
    of = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if name in MOVERS:  # those of texts and of dataclasses have other arguments
        return of in ("os", "shutil") or (of not in ("", "dataclasses") and len(texts) == 1)
    return name in WRITERS or (name in ARCHIVES and len(texts) > 0 and texts[0] not in memory)


@pytest.mark.parametrize(
    "line",
    [
        "path.write_text('x')",
        "open(path, 'w')",
        "path.open('ab')",
        "open(path, mode='x')",
        "path.open('r+b')",
        "os.fdopen(handle, 'wb')",
        "os.open(path, os.O_WRONLY | os.O_CREAT)",
        "np.savez(path, x=x)",
        "np.save('x.npy', x)",
        "model.save(path)",
        "fig.savefig(path)",
        "json.dump(x, file)",
        "zipfile.ZipFile(path, 'w')",
        "os.replace(a, b)",
        "a.replace(b)",
        "shutil.move(a, b)",
        "shutil.copyfile(a, b)",
    ],
)
def test_writing_is_noticed(line: str) -> None:
    assert writes(ast.parse(line))


def test_reading_and_memory_are_no_writing() -> None:
    lines = ["path.open()", "open(path, 'rb')", "text.replace('a', 'b')", "dataclasses.replace(row, kept=True)"]
    lines += ["content = io.BytesIO()\nzipfile.ZipFile(content, 'w')"]
    lines += ["content = io.BytesIO()\nnp.savez(content, x=x)", "with new.making(path) as made:\n    model.save(made)"]
    assert [line for line in lines if writes(ast.parse(line))] == []


@pytest.mark.parametrize("name", ["runtime/interpreters.py", "files/hdf5_copy.py"])
def test_small_processes_start_without_tensorflow(name: str) -> None:
    """The small process that runs or reads a file must not load TensorFlow, or the package."""
    names = {
        alias.name.split(".")[0]
        for node in ast.walk(parsed(PACKAGE / name))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    }
    assert not names & {"tensorflow", "keras", "kquant"}


def test_lanes_name_files_of_tests() -> None:
    import conftest

    files = {path.stem for path in Path(__file__).parent.rglob("test_*.py")}
    assert not {stem for lane in conftest.LANES.values() for stem in lane} - files


def test_tests_mirror_the_folders() -> None:
    """A file of tests is in the folder of what it tests, and each has one; what asks the whole house is outside."""
    here = Path(__file__).parent
    folders = {path.name for path in here.iterdir() if path.is_dir() and any(path.glob("test_*.py"))}
    assert folders == {path.parent.name for path in FILES} - {PACKAGE.name}
