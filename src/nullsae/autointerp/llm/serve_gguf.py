"""Serves a GGUF file with llama.cpp, from the package xllamacpp: no API key is needed."""

from __future__ import annotations

import importlib
import logging
import math
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from nullsae.config.model_files import GGUF_PACKAGES
from nullsae.core.errors import UserError, first_line
from nullsae.core.files import atomic_path, checksum

log = logging.getLogger(__name__)

QUANTIZATIONS = ("none", "q4_0", "q8_0")
XLLAMACPP = "xllamacpp==2026.10.11549"
HOST = "127.0.0.1"
# As for llama.cpp's own server. On the command line, all users of the machine could see it.
KEY_VARIABLE = "LLAMA_API_KEY"


def serve_gguf(
    file: Path,
    port: int,
    *,
    work: Path,
    quantize: str = "none",
    context_tokens: int = 4096,
    slots: int = 4,
    threads: int = 1,
) -> NoReturn:
    """Answer OpenAI-compatible requests at a port of 127.0.0.1 until SIGTERM or SIGINT.

    Requests must carry the key in the environment variable `LLAMA_API_KEY`, if that is set;
    `GET /health` returns 200 to everyone once the model is loaded. If `quantize` is not `none`,
    weights are first requantized into the folder `work`. `context_tokens` covers the prompt and
    answer of one request, `slots` is the number of concurrent requests, `threads` that of CPU
    threads. Raises a `UserError` if a package is missing, `quantize` is unknown, the port is taken,
    or the file cannot be read.
    """
    if quantize not in QUANTIZATIONS:
        raise UserError(f"--quantize: {quantize!r} is not one of {', '.join(QUANTIZATIONS)}")
    if find_spec("xllamacpp") is None:
        raise UserError(f"serving a GGUF file needs xllamacpp (pip install {XLLAMACPP})")
    with socket.socket() as probe:
        # As the server does: a port whose last owner has just ended is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"--port: {port} cannot be listened on: {first_line(error)}") from None
    if quantize != "none":
        file = requantized(file, quantize, work)
    # Default handling: the server stops at once, whatever it is doing.
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.SIG_DFL)
    server = _start(file, port, context_tokens, slots, threads)
    log.info("%s is served at %s/v1", file, server.listening_address)
    while True:
        signal.pause()


def _start(file: Path, port: int, context_tokens: int, slots: int, threads: int) -> Any:
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.hostnames = [HOST]
    params.port = port
    if key := os.environ.get(KEY_VARIABLE):
        params.api_keys = [key]
    params.n_ctx = context_tokens * slots  # llama.cpp divides it among the slots
    params.n_parallel = slots
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.warmup = False
    try:
        return xllamacpp.Server(params)
    except Exception as error:  # the C++ side throws no specific type
        raise UserError(f"{file}: llama.cpp cannot serve it: {first_line(error)}") from None


def requantized(file: Path, quantize: str, work: Path) -> Path:
    """Requantize a GGUF file once, into a copy that is found again by the file's checksum.

    On CPUs, llama.cpp reads prompts faster from blocks without an offset. Matrices whose rows
    consist of whole blocks of 32 are rewritten. With `q4_0`, token embeddings and the head, which
    cost a prompt nothing, are `q8_0`. Both formats have 4 or 8 bits per weight and one scale per
    block. Raises a `UserError` if the package gguf is missing, or cannot read the file.
    """
    if find_spec("gguf") is None:
        raise UserError(f"requantizing a GGUF file needs gguf (pip install {GGUF_PACKAGES})")
    copy = work / f"{file.stem}.{quantize}.{checksum(file)[:16]}.gguf"
    if not copy.is_file():
        log.info("%s: requantizing to %s", file, quantize)
        with _ended_by_exception(), atomic_path(copy) as temporary:
            _requantize(file, quantize, temporary)
    return copy


@contextmanager
def _ended_by_exception() -> Iterator[None]:
    """Raise `SystemExit` on SIGTERM, so that half-written files are removed."""

    def end(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _requantize(file: Path, quantize: str, output: Path) -> None:
    import gguf

    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: cannot be read as GGUF: {first_line(error)}") from None
    matrices = gguf.GGMLQuantizationType[quantize.upper()]
    lookups = gguf.GGMLQuantizationType.Q8_0
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(output, arch=architecture)
    for name, field in reader.fields.items():
        # The writer adds these itself.
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(int(getattr(gguf.LlamaFileType, f"MOSTLY_{matrices.name}")))
    formats: list[Any] = []
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        wanted = lookups if tensor.name in ("token_embd.weight", "output.weight") else matrices
        if len(shape) < 2 or shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
            wanted = tensor.tensor_type
        formats.append(wanted)
        info = tensor.data.shape, tensor.data.dtype, tensor.data.nbytes
        if wanted != tensor.tensor_type:
            in_bytes = gguf.quant_shape_to_byte_shape(shape, wanted)
            info = in_bytes, np.dtype(np.uint8), math.prod(in_bytes)
        writer.add_tensor_info(tensor.name, *info, wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, wanted in zip(reader.tensors, formats, strict=True):
        data = tensor.data
        if wanted != tensor.tensor_type:
            data = gguf.quantize(gguf.dequantize(data, tensor.tensor_type), wanted)
        writer.write_tensor_data(data)
    writer.close()
