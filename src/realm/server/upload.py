"""An adapter that comes in as multipart/form-data, written to disk as it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from realm.core.errors import InvalidRequest, ModelFileError
from realm.lora.stored import GGUF_FILE, PEFT_FILES, Incoming

FIELD = "files"
_MAX_PARTS = 4
_MAX_HEADER_BYTES = 1024
_MAX_HEADERS = 8
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


class UploadReader:
    """Sorts the parts of one body into the files of an upload. What a client calls a file never becomes a path.

    Args:
        content_type: The request's header.
        incoming: Where the files go.

    Raises:
        InvalidRequest: no boundary.
    """

    def __init__(self, content_type: str, incoming: Incoming) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary:
            raise _invalid("the content type has no boundary")
        self._incoming = incoming
        self._file: BinaryIO | None = None
        self._header = self._value = b""
        self._disposition = ""
        self._num_parts = 0
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_header,
                    "on_header_value": self._add_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open_file,
                    "on_part_data": self._write,
                    "on_end": self._end,
                },
                max_header_count=_MAX_HEADERS,
                max_header_size=_MAX_HEADER_BYTES,
            )
        except FormParserError as error:
            raise _invalid(str(error)) from None

    async def read(self, stream: AsyncIterator[bytes]) -> None:
        """Take the whole body.

        Raises:
            InvalidRequest: it is malformed, or a part of it is not a file of an adapter.
            PayloadTooLarge: it is more than there is room for.
        """
        try:
            async for chunk in stream:
                await asyncio.to_thread(self._parser.write, chunk)  # a disk may be slow
        except FormParserError as error:
            raise _invalid(str(error)) from None
        if not self._ended:
            raise _invalid("the body ends in the middle")

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise _invalid(f"more than {_MAX_PARTS} parts")
        self._disposition = ""

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value.decode("latin-1")  # byte by byte: what it means is seen below
        self._header = self._value = b""

    def _open_file(self) -> None:
        _, options = parse_options_header(self._disposition)
        field = options.get(b"name", b"").decode(errors="replace")
        if field != FIELD:
            raise InvalidRequest(f"unknown field {field[:100]!r}; files go into 'files'", code="unknown_parameter")
        self._file = self._incoming.create(_stored_name(options.get(b"filename", b"").decode(errors="replace")))

    def _write(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None
        self._incoming.write(self._file, memoryview(data)[start:end])

    def _end(self) -> None:
        self._ended = True


def _stored_name(file_name: str) -> str:
    """What we call a file that a client calls `file_name`."""
    if file_name in PEFT_FILES:
        return file_name
    if file_name.endswith(".gguf"):
        return GGUF_FILE
    if file_name.endswith(_PICKLES):
        raise ModelFileError(
            f"{file_name[:100]!r} is a pickle, which could run any code; only {PEFT_FILES[1]} is read",
            code="unsupported_adapter",
            param=FIELD,
            hint="save it again with PEFT's safe_serialization=True",
        )
    raise InvalidRequest(
        f"{file_name[:100]!r} is not a file of an adapter; send {' and '.join(PEFT_FILES)}, or one .gguf file",
        code="invalid_upload",
        param=FIELD,
    )


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(f"the body is not valid multipart/form-data: {message}", code="invalid_upload")
