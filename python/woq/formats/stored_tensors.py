# SPDX-License-Identifier: Apache-2.0
"""The stored tensors of a quantized layer as torch tensors: names, shapes, dtypes, conversions."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import torch

from ..config.quant_config import FORMAT_VERSION
from ..core import native

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MARKER", "StoredForm", "from_torch", "marker_bytes", "stored_specs", "to_torch"]

# Key of a tensor of bytes: the format version, then, since version 2, what the other tensors of the
# layer are (`StoredForm`) as JSON, padded with zeros. It has the name of the float weight and not
# its shape: a loader that knows nothing of woq stops with a shape error, where it would otherwise
# find no weight and go on with random numbers.
MARKER = "weight"

# The longest JSON of today has about 160 bytes.
_MARKER_BYTES = 256


def marker_bytes(format_version: int) -> int:
    """Length of the marker in checkpoints of that version."""
    return 1 if format_version == 1 else _MARKER_BYTES


@dataclasses.dataclass(frozen=True)
class StoredForm:
    """All that must be known of a layer's stored tensors to read them. Much of it cannot be told
    from the tensors: nf4 and fp4 have the same ones."""

    scheme: native.QuantScheme
    rows: int
    cols: int
    has_g_idx: bool = False
    has_act_scales: bool = False

    def specs(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every stored tensor, without the marker."""
        return stored_specs(
            self.scheme,
            self.rows,
            self.cols,
            has_g_idx=self.has_g_idx,
            has_act_scales=self.has_act_scales,
        )

    def matrix(self, tensors: Mapping[str, torch.Tensor]) -> native.QuantizedMatrix:
        """The matrix that the tensors are, see `from_torch`."""
        return from_torch(
            tensors,
            self.rows,
            self.cols,
            self.scheme,
            has_g_idx=self.has_g_idx,
            has_act_scales=self.has_act_scales,
        )

    def __str__(self) -> str:
        return json.dumps(self._fields(), sort_keys=True, separators=(",", ":"))

    def _fields(self) -> dict[str, object]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "scheme": self.scheme.to_dict()}

    def marker(self) -> torch.Tensor:
        """The tensor under `MARKER`."""
        text = bytes([FORMAT_VERSION]) + str(self).encode()
        return torch.frombuffer(bytearray(text.ljust(_MARKER_BYTES, b"\0")), dtype=torch.uint8)

    def check_marker(self, value: torch.Tensor, name: str = "") -> None:
        """Raise InvalidArgument unless `value` is a marker that says that the tensors are this.

        A marker of version 1 does not say what they are. `name` is the layer's, for messages.
        """
        where = name or "the layer"
        if value.dtype != torch.uint8:
            raise native.InvalidArgument(_no_marker(where, value.dtype, list(value.shape)))
        self.check_marked(StoredForm.from_marker(value.flatten().numpy().tobytes(), where), where)

    def check_marked(self, stored: StoredForm | None, name: str) -> None:
        """Raise InvalidArgument if a marker says that the tensors are something else."""
        if stored is not None and stored != self:
            raise native.InvalidArgument(
                f"{name}: the settings ask for tensors of the form {self}, those that are stored "
                f"have the form {stored}: config.json has been changed, or is of another model"
            )

    @staticmethod
    def from_marker(data: bytes, name: str) -> StoredForm | None:
        """What a marker's bytes say; None: version 1, which says nothing.

        Raises:
            InvalidArgument: they are no marker, or of a newer version.
        """
        if len(data) not in (marker_bytes(1), _MARKER_BYTES):
            raise native.InvalidArgument(_no_marker(name, "bytes", [len(data)]))
        version = data[0]
        if version > FORMAT_VERSION:
            raise native.InvalidArgument(
                f"{name}: the tensors have format version {version}; this woq reads up to "
                f"{FORMAT_VERSION}: install a newer woq"
            )
        if len(data) != marker_bytes(version):
            raise native.InvalidArgument(_no_marker(name, f"version {version}", [len(data)]))
        if version == 1:
            return None
        try:
            fields = json.loads(data[1:].rstrip(b"\0"))
            fields["scheme"] = native.QuantScheme.from_dict(fields["scheme"])
            form = StoredForm(**fields)
            form.specs()
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise native.InvalidArgument(
                f"{name}: its format marker is damaged ({error}): save the model again"
            ) from error
        return form


def _no_marker(name: str, kind: object, shape: list[int]) -> str:
    return (
        f"{name}: expected woq's format marker (uint8 [{_MARKER_BYTES}], or [1] in version 1), got "
        f"{kind} {shape}: these are not the tensors of a woq checkpoint"
    )


def stored_specs(
    scheme: native.QuantScheme,
    rows: int,
    cols: int,
    *,
    has_g_idx: bool = False,
    has_act_scales: bool = False,
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every stored tensor of a [rows, cols] matrix, without the marker."""
    specs = native.stored_tensors(scheme, rows, cols, has_g_idx, has_act_scales)
    return {name: (shape, getattr(torch, dtype)) for name, (shape, dtype) in specs.items()}


def to_torch(matrix: native.QuantizedMatrix) -> dict[str, torch.Tensor]:
    """Copies of the stored tensors: `matrix` can be freed, and they can be written to."""
    tensors = {}
    for name, array in matrix.tensors().items():
        if name == "scales" and array.dtype == "uint16":
            # numpy has no bfloat16 of its own: the bits arrive as integers.
            tensors[name] = torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
        else:
            tensors[name] = torch.from_numpy(array.copy())
    return tensors


def from_torch(
    tensors: Mapping[str, torch.Tensor],
    rows: int,
    cols: int,
    scheme: native.QuantScheme,
    *,
    has_g_idx: bool = False,
    has_act_scales: bool = False,
) -> native.QuantizedMatrix:
    """The matrix that `to_torch` took apart.

    Raises:
        InvalidArgument: names every tensor that is missing, has another shape or dtype than the
            scheme says, or holds what no matrix can have.
    """
    ready = {name: value.detach().contiguous() for name, value in tensors.items()}
    return native.QuantizedMatrix.from_tensors(
        ready,
        rows=rows,
        cols=cols,
        scheme=scheme,
        has_g_idx=has_g_idx,
        has_act_scales=has_act_scales,
    )
