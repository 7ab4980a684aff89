"""Every public name is documented, its arguments and what it returns have types, and what it shows is found in the package."""

import inspect

import pytest

import spectral_mup


def undocumented(thing: object, name: str) -> list[str]:
    """What a function or class lacks: a docstring, or the type of an argument or of what it returns."""
    doc = inspect.getdoc(thing) or ""
    lacks = [] if len(doc) > 10 and not doc.startswith(f"{name}(") else [f"{name}: docstring"]
    if inspect.isclass(thing):
        for method, function in vars(thing).items():
            function = getattr(function, "fget", None) or getattr(function, "func", function)
            if not method.startswith("_") and inspect.isfunction(function):
                lacks += undocumented(function, f"{name}.{method}")
        called = vars(thing).get("__init__")
        return lacks + ([] if called is None else untyped(called, name, returns=False))
    return lacks + untyped(thing, name)


def untyped(function: object, name: str, returns: bool = True) -> list[str]:
    signature = inspect.signature(function)
    arguments = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    lacks = [f"{name}: type of {p.name}" for p in arguments if p.annotation is p.empty]
    return lacks + [f"{name}: type of what it returns"] * (returns and signature.return_annotation is signature.empty)


def undescribed(function: object) -> list[str]:
    """Arguments that a docstring does not describe under Args, and Returns where it does not say what it returns."""
    doc, signature = inspect.getdoc(function) or "", inspect.signature(function)
    lacks = [name for name in signature.parameters if f"\n    {name}: " not in doc.partition("\nArgs:")[2]]
    return lacks + ["Returns"] * (signature.return_annotation not in (None, "None") and "\nReturns" not in doc)


@pytest.mark.parametrize("name", spectral_mup.__all__)
def test_it_is_documented_with_types(name):
    assert undocumented(getattr(spectral_mup, name), name) == []


FUNCTIONS = [name for name in spectral_mup.__all__ if name[0].islower()]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_and_what_is_returned_are_described(name):
    assert undescribed(getattr(spectral_mup, name)) == []


def test_what_is_not_described_is_seen():
    def grow(size: int, by: int) -> "int":
        """Grow.

        Args:
            size: Here.
        """
        return size + by

    assert undescribed(grow) == ["by", "Returns"]


def test_what_is_not_documented_is_seen():
    class Thing:
        def __init__(self, size):
            self.size = size

        def grow(self, by: int):
            self.size += by

        @property
        def area(self) -> int:
            return self.size**2

    assert undocumented(Thing, "Thing") == [
        "Thing: docstring", "Thing.grow: docstring", "Thing.grow: type of what it returns", "Thing.area: docstring",
        "Thing: type of size",
    ]  # fmt: skip


def test_all_are_listed_once_and_in_order():
    assert spectral_mup.__all__ == sorted(spectral_mup.PUBLIC) and set(dir(spectral_mup)) >= {"PUBLIC", "__version__"}
    for name, module in spectral_mup.PUBLIC.items():
        assert getattr(spectral_mup, name).__module__ == f"spectral_mup.{module}"
