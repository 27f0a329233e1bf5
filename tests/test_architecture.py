"""The rooms of the package: imports point downwards only, files stay short, names have meaning."""

import ast
import inspect
from pathlib import Path

import apsw
import pytest

import buckethead
from buckethead import errors

ROOT = Path(buckethead.__file__).parent
LONGEST_FILE = 500

# From the bottom to the top. A name stands for the module and for what is in it.
LAYERS = (
    "errors",
    "crashpoints",
    "storage.layout",
    "fields",
    "settings_file",
    "share_config",
    "config",
    "image.pages",
    "image.header",
    "image.scratch",
    "image.database",
    "image.callback_errors",
    "image.durable",
    "image.vfs",
    "image.connections",
    "storage.parallel",
    "storage.translate",
    "storage.counters",
    "storage.contract",
    "storage.client",
    "storage.bucket",
    "storage.localfiles",
    "storage.sidecars",
    "storage.directory",
    "storage.probe",
    "storage.ltx",
    "storage.images",
    "storage.history",
    "storage.restoring",
    "storage.publisher",
    "storage.retention",
    "storage.branches",
    "storage.snapshot",
    "status",
    "facts",
    "checkpoints",
    "durable_commit",
    "refusals",
    "waiting",
    "volume",
    "uris",
    "moments",
    "past",
    "follower",
    "registry",
    "branches",
    "turns",
    "flusher",
    "scheduler",
    "lifecycle",
    "connection",
    "interfaces.statements",
    "interfaces.filters",
    "interfaces.docs",
    "interfaces.kvstore",
    "interfaces.backing",
    "interfaces.kv",
    "files.content",
    "files.rows",
    "files.blobs",
    "files.unpublished",
    "files.references",
    "files.kept",
    "files.collecting",
    "files.store",
    "tables.schemas",
    "tables.kv",
    "tables.files",
    "tables.status",
    "tables.branches",
    "tables",
    "observability.profiling",
    "observability.reporter",
    "files.tracker",
    "share_names",
    "sharing",
    "core",
    "",
    "bench",
    "cli",
    "__main__",
)
PACKAGES = {"files", "image", "storage", "interfaces", "observability"}
FOREIGN_TO_THE_IMAGE = {"boto3", "botocore", "pydantic", "pydantic_settings", "rich", "click"}


def modules() -> dict[str, Path]:
    """Every module by its name below the package, which itself is ''."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


MODULES = modules()


def layer_of(module: str) -> int:
    """Its place in LAYERS; the longest name that fits counts."""
    names = [name for name in LAYERS if module == name or (name and module.startswith(f"{name}."))]
    assert names, f"{module} is in no layer: give it one"
    return LAYERS.index(max(names, key=len))


def imports_of(module: str) -> set[str]:
    """The modules of the package, and the others, that a module imports anywhere in it."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = [part for part in package if part]
            base = above[: len(above) - node.level + 1] if node.level else []
            origin = ".".join(
                [*(["buckethead", *base] if node.level else []), *(node.module or "").split(".")]
            ).rstrip(".")
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return found


def ours(name: str) -> str | None:
    """The module of the package that an imported dotted name is, or is in; None for others."""
    if name.split(".", maxsplit=1)[0] != "buckethead":
        return None
    inner = name.removeprefix("buckethead").removeprefix(".")
    while inner not in MODULES:
        inner = inner.rpartition(".")[0]
    return inner


@pytest.mark.parametrize("module", sorted(set(MODULES) - PACKAGES))
def test_imports_point_downwards_only(module: str) -> None:
    mine = layer_of(module)
    for name in imports_of(module):
        target = ours(name)
        if target is None or target in PACKAGES:
            continue
        inside = LAYERS[mine] and target.startswith(LAYERS[mine])
        assert layer_of(target) < mine or inside, f"{module} imports {target}, which is above it"


def test_every_layer_that_must_exist_does() -> None:
    later = {"bench", "cli", "__main__"}
    assert set(LAYERS) - set(MODULES) <= later


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_of_rooms_hold_nothing_themselves(package: str) -> None:
    body = ast.parse(MODULES[package].read_text()).body
    assert all(isinstance(node, ast.Expr) for node in body), "only a docstring"


def test_the_image_knows_neither_buckets_nor_configuration() -> None:
    for module in MODULES:
        if module.startswith("image."):
            for name in imports_of(module):
                assert name.split(".")[0] not in FOREIGN_TO_THE_IMAGE
                assert (ours(name) or "image").split(".")[0] in ("image", "errors")


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES.keys())
def test_files_stay_short_and_say_their_duty(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    assert ast.get_docstring(ast.parse(text)), "a file begins with its duty"


# ---- errors

CODES = {
    errors.VolumeReadOnlyError: apsw.SQLITE_READONLY,
    errors.CommitError: apsw.SQLITE_IOERR,
    errors.BucketHeadError: apsw.SQLITE_CANTOPEN,
}


def exceptions() -> list[type[BaseException]]:
    return [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, errors.BucketHeadError)
    ]


@pytest.mark.parametrize("error", [e for e in exceptions() if e is not errors.BucketHeadError])
def test_every_error_has_the_code_of_sqlite_that_it_leaves_a_callback_with(
    error: type[BaseException],
) -> None:
    raised = error("Could not do 'this'.")
    assert isinstance(raised, apsw.Error)
    code = next(code for base, code in CODES.items() if isinstance(raised, base))
    assert [getattr(raised, name) for name in ("result", "extendedresult")] == [code, code]
    assert str(raised) == "Could not do 'this'."


@pytest.mark.parametrize("error", [e for e in exceptions() if e is not errors.BucketHeadError])
def test_every_error_leaves_the_opening_of_a_volume_as_itself(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("as itself")

    monkeypatch.setattr("buckethead.core.registry.mount", fail)
    with pytest.raises(error, match="as itself"):
        apsw.Connection("file:never-mounted?vfs=buckethead&bucket=b")


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = (errors.__doc__ or "").split("::")[1]
    for error in exceptions():
        assert error.__name__ in drawn


# ---- the public surface


def test_the_exported_names_are_sorted_and_there() -> None:
    capitals_first = sorted(buckethead.__all__, key=lambda name: (not name.isupper(), name))
    assert buckethead.__all__ == capitals_first
    assert len(set(buckethead.__all__)) == len(buckethead.__all__)
    for name in buckethead.__all__:
        assert hasattr(buckethead, name)


@pytest.mark.parametrize("name", buckethead.__all__)
def test_exported_names_and_their_methods_have_docstrings(name: str) -> None:
    value = getattr(buckethead, name)
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        for method, member in vars(value).items():
            described = inspect.isfunction(member) or isinstance(member, property | classmethod)
            if described and not method.startswith("_"):
                # of an overriding method, that of the contract
                assert inspect.getdoc(getattr(value, method)), f"{name}.{method}"


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES.keys())
def test_public_functions_and_classes_have_docstrings(path: Path) -> None:
    bare = [
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert bare == []
