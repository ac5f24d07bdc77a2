"""Arrays in files: which there are, of which shape, and their values. Nothing is unpickled unless that is allowed."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

FORMATS = (".npy", ".npz", ".pt", ".pth", ".safetensors", ".parquet")
_PICKLED = "holds pickled objects, which can run code when they are read; if you trust it, --allow-pickle reads them"


class InspectError(Exception):
    """What is wrong with what was asked, in one line."""


class Entry(NamedTuple):
    """An array of a file: shape and dtype in words, and whether it may be embeddings: floats, two sides."""

    description: str
    is_matrix: bool


class Arrays(NamedTuple):
    """The arrays of a file by name; that of a file with one array that has no name is "".

    load : the array, or the tensor, of a name
    """

    path: Path
    entries: dict[str, Entry]
    load: Callable[[str], Array | Tensor]

    def describe(self) -> str:
        """All names with their shapes, in one line."""
        return "; ".join(f"{name} {entry.description}" for name, entry in self.entries.items())


def open_arrays(path: Path, allow_pickle: bool) -> Arrays:
    """What is in the file. Raises InspectError."""
    if not path.exists():
        raise InspectError(f"{path}: there is no such file")
    if not path.is_file():
        raise InspectError(f"{path}: is no file")
    if path.suffix.lower() not in FORMATS:
        raise InspectError(f"{path}: got the suffix {path.suffix!r}; accepted: {', '.join(FORMATS)}")
    if path.stat().st_size == 0:
        raise InspectError(f"{path}: is empty, 0 bytes")
    readers = {".npy": _npy, ".npz": _npz, ".pt": _pt, ".pth": _pt, ".safetensors": _safetensors,
               ".parquet": _parquet}
    suffix = path.suffix.lower()
    arrays: Arrays = _reading(path, lambda: readers[suffix](path, allow_pickle))
    return arrays._replace(load=lambda name: _reading(path, lambda: arrays.load(name)))


def _reading(path: Path, action: Callable[[], Any]) -> Any:
    """Readers of files that somebody else has written raise whatever they like: the words of it, as one line."""
    try:
        return action()
    except InspectError:
        raise
    except ModuleNotFoundError as error:
        raise InspectError(f"{path}: {path.suffix} needs {error.name}, which is not installed: pip install "
                           "'hexssl[inspect]'") from error
    except PermissionError as error:
        raise InspectError(f"{path}: may not be read") from error
    except MemoryError as error:
        raise InspectError(f"{path}: does not fit into memory") from error
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise InspectError(f"{path}: cannot be read as {path.suffix}, it may be truncated: {words[:200]}") from error


def _entry(shape: Iterable[int], dtype: Any) -> Entry:
    shape = tuple(shape)
    floats = "float" in str(dtype)
    return Entry(f"{dtype} {shape}", floats and len(shape) == 2)


def _refuse_pickle(path: Path) -> NoReturn:
    raise InspectError(f"{path}: {_PICKLED}")


def _npy(path: Path, allow_pickle: bool) -> Arrays:
    with path.open("rb") as file:
        is_npy = file.read(6) == b"\x93NUMPY"
    if not is_npy and not allow_pickle:
        try:
            np.load(path, allow_pickle=False)
        except ValueError as error:
            if "pickled" in str(error):
                _refuse_pickle(path)
            raise
    if is_npy:
        _, dtype = _header(path.open("rb"))
        if dtype.hasobject and not allow_pickle:
            _refuse_pickle(path)
    array = np.load(path, allow_pickle=allow_pickle)
    if not isinstance(array, np.ndarray):
        raise InspectError(f"{path}: got a pickled {type(array).__name__}; accepted: an array")
    return Arrays(path, {"": _entry(array.shape, array.dtype)}, lambda name: array)


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array in NumPy's format, without its values."""
    with file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return shape, dtype


def _npz(path: Path, allow_pickle: bool) -> Arrays:
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        headers = {name.removesuffix(".npy"): _header(archive.open(name)) for name in members}

    def load(name: str) -> Array:
        if headers[name][1].hasobject and not allow_pickle:
            _refuse_pickle(path)
        with np.load(path, allow_pickle=allow_pickle) as file:
            array: Array = file[name]
        return array

    return Arrays(path, {name: _entry(*header) for name, header in headers.items()}, load)


def _pt(path: Path, allow_pickle: bool) -> Arrays:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what then fails, or works
            found = torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        if not allow_pickle and "weights_only" in str(error).lower().replace(" ", "_"):
            _refuse_pickle(path)
        raise
    if isinstance(found, Tensor | np.ndarray):
        return Arrays(path, {"": _entry(found.shape, _dtype_name(found))}, lambda name: found)
    pairs: dict[str, Any] = {}
    if isinstance(found, Mapping):
        pairs = {str(name): value for name, value in found.items()}
    elif isinstance(found, list | tuple):
        pairs = {str(index): value for index, value in enumerate(found)}
    arrays = {name: value for name, value in pairs.items() if isinstance(value, Tensor | np.ndarray)}
    if not arrays:
        raise InspectError(f"{path}: got a {type(found).__name__} without tensors; accepted: a tensor, or a dict or "
                           "list of tensors")
    return Arrays(path, {name: _entry(value.shape, _dtype_name(value)) for name, value in arrays.items()},
                  lambda name: arrays[name])


def _dtype_name(array: Array | Tensor) -> str:
    return str(array.dtype).removeprefix("torch.")


_SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def _safetensors(path: Path, allow_pickle: bool) -> Arrays:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        entries = {name: _entry(found.get_shape(), _SAFETENSORS.get(found.get_dtype(), found.get_dtype()))
                   for name, found in slices.items()}

    def load(name: str) -> Tensor:
        with safe_open(path, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor

    return Arrays(path, entries, load)


def _parquet(path: Path, allow_pickle: bool) -> Arrays:
    import pyarrow as pa
    from pyarrow import parquet

    schema, rows = parquet.read_schema(path), parquet.read_metadata(path).num_rows

    def is_list(kind: Any) -> bool:
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        return any(test(kind) for test in lists)

    entries = {field.name: Entry(f"{field.type} of {rows} rows",
                                 is_list(field.type) and pa.types.is_floating(field.type.value_type))
               for field in schema}

    def load(name: str) -> Array:
        column = parquet.read_table(path, columns=[name]).column(0).combine_chunks()
        if column.null_count:
            raise InspectError(f"{path}: {name}: got {column.null_count} rows that are null; accepted: none")
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if not is_list(column.type):
            return np.asarray(column.to_numpy(zero_copy_only=False))
        flat = column.flatten()
        width = len(flat) // max(1, len(column))
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if flat.null_count or not (lengths == width).all():
            raise InspectError(f"{path}: {name}: got lists of {lengths.min()} to {lengths.max()} numbers, "
                               f"{flat.null_count} of them null; accepted: as many numbers in every row")
        return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(column), width)

    return Arrays(path, entries, load)


def pick(arrays: Arrays, key: str | None) -> str:
    """The name of the embeddings: the key, or the only array that may be them."""
    if key is not None:
        if key not in arrays.entries:
            raise InspectError(f"{arrays.path}: --key: got {key!r}; it holds {arrays.describe() or 'nothing'}")
        return key
    matrices = [name for name, entry in arrays.entries.items() if entry.is_matrix]
    if len(matrices) == 1:
        return matrices[0]
    if len(arrays.entries) == 1:
        return next(iter(arrays.entries))
    found = f"{len(matrices)} arrays that may be embeddings" if matrices else "no (rows, columns) array of floats"
    raise InspectError(f"{arrays.path}: got {found}, and no --key; it holds {arrays.describe() or 'nothing'}")


def read_embeddings(arrays: Arrays, key: str | None) -> tuple[str, Array | Tensor]:
    """Their name and values."""
    name = pick(arrays, key)
    values = arrays.load(name)
    where = f"{arrays.path}: {name}" if name else str(arrays.path)
    if "float" not in str(values.dtype) or "float8" in str(values.dtype) or values.dtype.itemsize > 8:
        raise InspectError(f"{where}: got {_dtype_name(values)}; accepted: float16, bfloat16, float32 or float64")
    if values.ndim != 2 or 0 in values.shape:
        raise InspectError(f"{where}: got shape {tuple(values.shape)}; accepted: (rows, columns), neither of them 0")
    if values.shape[0] < 2:
        raise InspectError(f"{where}: got one row; accepted: two or more")
    return name, values


def read_labels(arrays: Arrays, option: str, given: str, rows: int, allow_pickle: bool
                ) -> tuple[Array, dict[int, str]]:
    """Labels by the name of an array in the file, or by that of another file, FILE or FILE:KEY; and what they mean,
    where they are words."""
    if given in arrays.entries:
        values, where = arrays.load(given), f"{arrays.path}: {given}"
    else:
        values, where = _labels_of_file(arrays, option, given, allow_pickle)
    if isinstance(values, Tensor):
        values = values.numpy()
    if values.ndim == 2 and 1 in values.shape:
        values = values.reshape(-1)
    if values.shape != (rows,):
        raise InspectError(f"{where}: {option}: got shape {values.shape}; accepted: one label for each of the {rows} "
                           "rows")
    if values.dtype.kind in "iub":
        if values.dtype == np.uint64 and (values > np.iinfo(np.int64).max).any():
            raise InspectError(f"{where}: {option}: got a label past 2**63 - 1; accepted: integers below it, or words")
        return values.astype(np.int64), {}
    if values.dtype.kind in "US" or (values.dtype == object and all(isinstance(word, str) for word in values)):
        words, numbers = np.unique(values.astype(str), return_inverse=True)
        return numbers.astype(np.int64), dict(enumerate(map(str, words)))
    raise InspectError(f"{where}: {option}: got {values.dtype}; accepted: integers, bool or words")


def _labels_of_file(arrays: Arrays, option: str, given: str, allow_pickle: bool) -> tuple[Any, str]:
    path, _, key = given.rpartition(":")
    if Path(given).exists() or not path:
        path, key = given, ""
    if not Path(path).exists():
        raise InspectError(f"{option}: got {given!r}, which is no file and no array of {arrays.path}; it holds "
                           f"{arrays.describe()}")
    other = open_arrays(Path(path), allow_pickle)
    if key and key not in other.entries:
        raise InspectError(f"{path}: {option}: got the key {key!r}; it holds {other.describe()}")
    if not key and len(other.entries) != 1:
        raise InspectError(f"{path}: {option}: got several arrays, and no {path}:KEY; it holds {other.describe()}")
    name = key or next(iter(other.entries))
    return other.load(name), f"{path}: {name}" if name else str(path)
