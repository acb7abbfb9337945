#!/usr/bin/python3
"""Every NBD request, flag and error, asked by libnbd. Usage: nbd_requests.py URI. Overwrites the volume's first 48 MiB."""

import errno
import sys

import nbd

uri = sys.argv[1]
MIB = 1 << 20


def connect(strict=True, context=True):
    handle = nbd.NBD()
    if context:
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    if not strict:
        # libnbd refuses bad requests itself unless told to let the server judge.
        handle.set_strict_mode(0)
    handle.connect_uri(uri)
    return handle


def refused(expected, request, *arguments, **named):
    try:
        request(*arguments, **named)
    except nbd.Error as error:
        assert error.errnum in expected, f"{request.__name__}{arguments}: {error}"
        return
    raise AssertionError(f"{request.__name__}{arguments} {named} should have been refused")


def extents(handle, offset, length, flags=0):
    found = []

    def seen(context, start, entries, _error):
        assert context == nbd.CONTEXT_BASE_ALLOCATION and start == offset
        found.extend(zip(entries[0::2], entries[1::2]))

    handle.block_status(length, offset, seen, flags)
    return found


def reads_and_writes(handle):
    pattern = bytes(range(256)) * 16
    for offset in (0, 4096, 1, 4095, 1_000_003, 5 * MIB - 7):
        handle.pwrite(pattern, offset)
        assert handle.pread(len(pattern), offset) == pattern, offset
    handle.pwrite(b"x", 12345)
    assert handle.pread(1, 12345) == b"x"
    handle.pwrite(pattern, 8192, nbd.CMD_FLAG_FUA)
    handle.flush()
    pieces = []
    whole = handle.pread_structured(4096, 8192, lambda *piece: pieces.append(piece[1:3]), nbd.CMD_FLAG_DF)
    assert whole == pattern and pieces == [(8192, nbd.READ_DATA)], pieces
    largest = bytes([7]) * (32 * MIB)
    handle.pwrite(largest, 0)
    assert handle.pread(32 * MIB, 0) == largest


def zeroes_and_trims(handle):
    ones = b"\1" * (1 * MIB)
    for flags in (0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_FUA,
                  nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE):
        handle.pwrite(ones, MIB)
        handle.zero(MIB - 1000, MIB + 500, flags)
        got = handle.pread(MIB, MIB)
        assert got == ones[:500] + bytes(MIB - 1000) + ones[:500], flags
    refused([errno.ENOTSUP], handle.zero, 4096, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    handle.pwrite(ones, 2 * MIB)
    handle.trim(MIB, 2 * MIB, nbd.CMD_FLAG_FUA)
    assert handle.pread(MIB, 2 * MIB) == bytes(MIB)
    size = handle.get_size()
    handle.zero(min(size, 0xFFFFF000) - 64 * MIB, 64 * MIB) if size > 128 * MIB else None


def block_status(handle):
    handle.trim(16 * MIB, 0)
    handle.pwrite(b"\1" * 8192, 4 * MIB)
    found = extents(handle, 4 * MIB - 4096, MIB)
    assert sum(length for length, _ in found) <= MIB
    hole = nbd.STATE_HOLE | nbd.STATE_ZERO
    assert found[0] == (4096, hole) and found[1] == (8192, 0), found
    one = extents(handle, 4 * MIB - 4096, MIB, nbd.CMD_FLAG_REQ_ONE)
    assert one == [(4096, hole)], one
    assert extents(handle, 4 * MIB + 100, 50) == [(50, 0)]
    handle.cache(MIB, 4 * MIB)


def many_in_flight(handle):
    buffers = []
    for number in range(256):
        content = nbd.Buffer.from_bytearray(bytearray(number.to_bytes(2, "little") * 2048))
        buffers.append(content)
        handle.aio_pwrite(content, 8 * MIB + number * 4096)
    while handle.aio_in_flight():
        handle.poll(-1)
    answers = [nbd.Buffer(4096) for _ in range(256)]
    for number, answer in enumerate(answers):
        handle.aio_pread(answer, 8 * MIB + number * 4096)
    while handle.aio_in_flight():
        handle.poll(-1)
    for number, answer in enumerate(answers):
        assert answer.to_bytearray() == bytearray(number.to_bytes(2, "little") * 2048), number


def flush_covers_all_connections(handle):
    other = connect()
    assert handle.can_multi_conn() and other.can_multi_conn()
    handle.pwrite(b"a" * 4096, 0)
    other.flush()
    assert other.pread(4096, 0) == b"a" * 4096
    other.shutdown()


def bad_requests(strict):
    handle = connect(strict=False)
    size = handle.get_size()
    strict.pwrite(b"z" * 4096, 0)
    refused([errno.EINVAL], handle.pread, 4096, size - 1)
    refused([errno.ENOSPC], handle.pwrite, b"y" * 4096, size - 1)
    refused([errno.EINVAL], handle.trim, 4096, size)
    refused([errno.ENOSPC], handle.zero, 4096, size)
    refused([errno.EINVAL], handle.cache, 4096, size)
    refused([errno.EINVAL], handle.block_status, 4096, size, lambda *_: None)
    refused([errno.EINVAL], handle.pread, 4096, 2**63 - 10)
    refused([errno.EINVAL], handle.pread, 33 * MIB, 0)
    refused([errno.EINVAL], handle.pwrite, b"y" * (33 * MIB), 0)
    handle.pwrite(b"", 0)
    assert handle.pread(0, 0) == b""
    handle.trim(0, 0)
    handle.zero(0, 0)
    assert handle.pread(4096, 0) == b"z" * 4096, "a refused request changed something"
    handle.shutdown()


def handshake_choices():
    for structured in (True, False):
        handle = nbd.NBD()
        handle.set_request_structured_replies(structured)
        handle.connect_uri(uri)
        assert handle.get_structured_replies_negotiated() == structured
        handle.pwrite(b"q" * 5000, 3)
        assert handle.pread(5000, 3) == b"q" * 5000
        handle.shutdown()

    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(uri)
    names = []
    handle.opt_list(lambda name, description: names.append(name))
    assert names, "the listing is empty"
    name = handle.get_export_name()
    contexts = []
    handle.set_export_name("there-is-no-such-volume")
    refused([errno.ENOENT], handle.opt_info)
    refused([errno.ENOENT, errno.EINVAL, errno.ENOTSUP], handle.opt_list_meta_context, contexts.append)
    handle.set_export_name(name)
    handle.opt_info()
    assert handle.get_size() > 0
    handle.opt_list_meta_context(contexts.append)
    assert contexts == [nbd.CONTEXT_BASE_ALLOCATION], contexts
    handle.opt_go()
    assert handle.pread(5000, 3) == b"q" * 5000
    handle.shutdown()

    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(uri)
    handle.opt_abort()


def main():
    handle = connect()
    reads_and_writes(handle)
    zeroes_and_trims(handle)
    block_status(handle)
    many_in_flight(handle)
    flush_covers_all_connections(handle)
    bad_requests(handle)
    handshake_choices()
    handle.shutdown()
    print("libnbd: every request, flag and error as it must be")


main()
