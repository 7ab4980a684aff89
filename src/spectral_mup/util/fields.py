"""Field types with bounds, and the base class of every part of the config: frozen, no unknown keys."""

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Part(BaseModel):
    """A part of the config. `model_copy(update={…})` changes a value without checking it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def one_of(*known: str) -> AfterValidator:
    """Return a validator like Literal, for names that the code knows as plain str."""

    def check(name: str) -> str:
        if name not in known:
            raise PydanticCustomError("literal_error", "must be one of them", {"expected": ", ".join(known)})
        return name

    return AfterValidator(check)


def _one_as_list(value: Any) -> Any:
    return [value] if isinstance(value, int | float | str) and value != "" else value


T = TypeVar("T")

List = Annotated[list[T], BeforeValidator(_one_as_list)]
"""Several values, or one that stands for a list of itself."""
Int = Annotated[int, BeforeValidator(_refuse_bool)]
Float = Annotated[float, BeforeValidator(_refuse_bool)]
AtLeastOne = Annotated[Int, Field(ge=1)]
AtLeastZero = Annotated[Int, Field(ge=0)]
Positive = Annotated[Float, Field(gt=0)]
NotNegative = Annotated[Float, Field(ge=0)]
Fraction = Annotated[Float, Field(ge=0, lt=1)]
