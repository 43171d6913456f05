"""Fields of a JSON object, read with their types; what is wrong with one as the client sees it."""

import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar

Default = TypeVar("Default")

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60


class ApiError(Exception):
    """An answer that says what was wrong.

    Args:
        message: for the person who wrote the client.
        param: the field it is about.
        status: of the HTTP answer.
        code: for programs.
        type: the kind of mistake, in OpenAI's words; follows from the status.
        retry_after: seconds after which it may work.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = "invalid_value",
        type: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.code = code
        self.type = type or ("server_error" if status >= 500 else "invalid_request_error")
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The object that OpenAI's clients read."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}


def unknown_field(name: str, close: list[str]) -> ApiError:
    """The answer to a field that nothing reads."""
    hint = f"; did you mean {close[0]}?" if close else ""
    return ApiError(f"unknown field {_REPR.repr(name)}{hint}", name, code="unknown_parameter")


class Fields:
    """The fields of one object; those that were taken are remembered.

    null stands for a field that is not there.
    """

    def __init__(self, record: Mapping[str, Any], where: str = "") -> None:
        self._record = record
        self._prefix = f"{where}." if where else ""
        self._taken: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the field is there."""
        return self._record.get(name) is not None

    def take(self, name: str) -> Any:
        """The field as it is, None where there is none."""
        self._taken.add(name)
        return self._record.get(name)

    def taken(self) -> list[str]:
        """Names that were asked for."""
        return sorted(self._taken)

    def rest(self) -> list[str]:
        """Names of fields that were not taken."""
        return sorted(self._record.keys() - self._taken)

    def text(self, name: str) -> str:
        """A string that must be there.

        Raises:
            ApiError: it is not, or is something else.
        """
        value, full = self.take(name), self._prefix + name
        if value is None:
            raise ApiError(f"{full} must be given", full, code="missing_required_parameter")
        if not isinstance(value, str):
            raise self._wrong_type(name, "a string", value)
        return self.checked_text(name, value)

    def checked_text(self, name: str, value: str) -> str:
        """The text, unless it holds half a character, which JSON can name and UTF-8 cannot.

        Raises:
            ApiError: it does.
        """
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ApiError(
                f"{self._prefix}{name} must be Unicode text, got a lone surrogate at character "
                f"{error.start}",
                self._prefix + name,
            ) from None
        return value

    def boolean(self, name: str, default: bool) -> bool:
        """True or false.

        Raises:
            ApiError: it is something else.
        """
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong_type(name, "true or false", value)
        return value

    def integer(self, name: str, default: Default, low: int, high: int) -> int | Default:
        """A whole number from `low` to `high`; JSON does not tell 3.0 from 3.

        Raises:
            ApiError: it is something else.
        """
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise self._wrong_type(name, "a whole number", value)
        self._check_range(name, value, low, high)
        return value

    def number(self, name: str, default: Default, low: float, high: float) -> float | Default:
        """A number from `low` to `high`.

        Raises:
            ApiError: it is something else.
        """
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong_type(name, "a number", value)
        self._check_range(name, value, low, high)
        return float(value)

    def _check_range(self, name: str, value: float, low: float, high: float) -> None:
        # Of NaN neither holds.
        if not low <= value <= high:
            full = self._prefix + name
            raise ApiError(f"{full} must be from {low} to {high}, got {_REPR.repr(value)}", full)

    def _wrong_type(self, name: str, wanted: str, value: object) -> ApiError:
        full = self._prefix + name
        return ApiError(
            f"{full} must be {wanted}, got {_REPR.repr(value)}", full, code="invalid_type"
        )
