from collections.abc import Generator
from types import GenericAlias
from typing import Generic, TypeVar, final

_T_co = TypeVar("_T_co", covariant=True)

@final
class Ready(Generic[_T_co]):
    def __new__(cls, value: _T_co) -> Ready[_T_co]: ...
    def __class_getitem__(cls, item: object, /) -> GenericAlias: ...
    def __await__(self) -> Generator[None, None, _T_co]: ...
