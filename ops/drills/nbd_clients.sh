#!/usr/bin/env bash
# Drives a served volume with the NBD clients people use: libnbd's tools, qemu's tools and fio.
#
#   ops/drills/nbd_clients.sh nbd://127.0.0.1:10809/demo
#   ops/drills/nbd_clients.sh 'nbd+unix:///demo?socket=/run/velum/nbd.sock'
#
# The volume's contents are overwritten. It needs at least 64 MiB; what lies beyond the first 256 MiB is only zeroed.
# Needs (Debian names): libnbd-bin python3-libnbd qemu-utils fio. Exit 0: every step did what it must.
set -euo pipefail

uri=${1:?usage: nbd_clients.sh URI}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# python3-libnbd belongs to the system's python3, which need not be the first in PATH.
export PATH=/usr/bin:$PATH

step() { printf '== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

for tool in nbdinfo nbdcopy nbdsh qemu-img qemu-io fio; do
    command -v "$tool" >/dev/null || fail "$tool is not installed"
done

size=$(nbdinfo --size "$uri")
[ "$size" -ge $((64 << 20)) ] || fail "the volume has $size bytes, 64 MiB are needed"
used=$((size < 256 << 20 ? size : 256 << 20))

step "nbdinfo: what is offered"
nbdinfo --json "$uri" >"$work/info.json"
/usr/bin/python3 - "$work/info.json" "$size" <<'PY'
import json, sys
export = json.load(open(sys.argv[1]))["exports"][0]
wanted = {
    "can_cache": True, "can_df": True, "can_fast_zero": True, "can_flush": True, "can_fua": True,
    "can_multi_conn": True, "can_trim": True, "can_zero": True, "is_read_only": False,
    "block_size_minimum": 1, "block_size_preferred": 4096, "block_size_maximum": 32 << 20,
    "contexts": ["base:allocation"], "export-size": int(sys.argv[2]),
}
wrong = {key: export.get(key) for key, value in wanted.items() if export.get(key) != value}
sys.exit(f"FAILED: not as offered: {wrong}" if wrong else 0)
PY
for can in connect read write flush fua trim zero fast-zero cache multi-conn df structured-reply; do
    nbdinfo --can "$can" "$uri" || fail "nbdinfo --can $can"
done
! nbdinfo --is read-only "$uri" || fail "the volume is read-only"
! nbdinfo --is tls "$uri" || fail "nobody asked for TLS"
nbdinfo --list "$uri" >"$work/list" || fail "nbdinfo --list"
grep -q 'export=' "$work/list" || fail "the listing is empty"

step "libnbd: every request, flag and error"
/usr/bin/python3 "$here/nbd_requests.py" "$uri"

step "an image with data and holes of $((used >> 20)) MiB"
truncate -s "$size" "$work/image"
for place in 0 1 7 20 33 50; do
    dd if=/dev/urandom of="$work/image" bs=1M seek=$place count=$((place % 4 + 1)) conv=notrunc status=none
done
dd if=/dev/urandom of="$work/image" bs=4k seek=$(((used >> 12) - 1)) count=1 conv=notrunc status=none

step "nbdcopy, several connections"
nbdcopy --connections=4 --requests=64 --flush "$work/image" "$uri"
nbdcopy --connections=4 --requests=64 "$uri" "$work/back"
cmp "$work/image" "$work/back" || fail "nbdcopy brought other bytes back"
nbdcopy --synchronous "$uri" - | cmp - "$work/image" || fail "nbdcopy --synchronous brought other bytes back"
nbdinfo --map --totals "$uri"

step "qemu-img: info, compare, map, convert"
qemu-img info "$uri" | grep -q 'file format: raw' || fail "qemu-img info"
qemu-img compare -f raw -F raw "$work/image" "$uri" || fail "qemu-img compare"
qemu-img map --output=json "$uri" >"$work/map.json"
/usr/bin/python3 - "$work/map.json" "$work/image" <<'PY'
import json, sys
with open(sys.argv[2], "rb") as image:
    for extent in json.load(open(sys.argv[1])):
        if extent["zero"]:
            image.seek(extent["start"])
            left = extent["length"]
            while left:
                piece = image.read(min(left, 1 << 20))
                if piece.strip(b"\0"):
                    sys.exit(f"FAILED: the map calls data zero near {image.tell()}")
                left -= len(piece)
PY
nbdsh -u "$uri" -c 'h.zero(min(h.get_size(), 64 << 20), 0)' 2>/dev/null || fail "nbdsh zero"
qemu-img convert -n -f raw -O raw -m 16 -W "$work/image" "$uri"
qemu-img compare -f raw -F raw "$work/image" "$uri" || fail "qemu-img compare after convert"

step "qemu-io: patterns, zeroes, discard, flush, many at once"
{
    echo "write -P 0x11 0 1M"
    echo "write -f -P 0x22 1M 64k"
    echo "write -P 0x33 1000 3000"
    echo "write -z 2M 128k"
    echo "write -z -u 2176k 128k"
    echo "discard 3M 1M"
    for number in $(seq 0 63); do echo "aio_write -q -P $((number + 64)) $((4096 + number * 64))k 64k"; done
    echo "aio_flush"
    for number in $(seq 0 63); do echo "aio_read -q -P $((number + 64)) $((4096 + number * 64))k 64k"; done
    echo "aio_flush"
    echo "flush"
    echo "read -P 0x33 1000 3000"
    echo "read -P 0x11 4000 96"
    echo "read -P 0x22 1M 64k"
    echo "read -P 0 2M 256k"
    echo "read -P 0 3M 1M"
    echo "quit"
} | qemu-io -f raw "$uri" >"$work/qemu-io.log" 2>&1 || { cat "$work/qemu-io.log"; fail "qemu-io"; }
! grep -iE 'pattern verification failed|error|failed' "$work/qemu-io.log" || fail "qemu-io found other bytes"

step "fio: random writes of mixed size, every block verified"
(cd "$work" && fio --name=verify --ioengine=nbd --uri="$uri" --rw=randwrite --bsrange=4k-64k --iodepth=16 \
    --size=$((used / 4)) --verify=crc32c --do_verify=1 --verify_fatal=1 --fsync=64 --output="$work/fio.log") ||
    { cat "$work/fio.log"; fail "fio verify"; }
grep -q 'err= 0' "$work/fio.log" || { cat "$work/fio.log"; fail "fio verify"; }

step "fio: mixed reads and writes that do not keep to blocks"
(cd "$work" && fio --name=unaligned --ioengine=nbd --uri="$uri" --rw=randrw --bsrange=512-16k --bs_unaligned=1 \
    --iodepth=8 --size=16m --verify=crc32c --verify_fatal=1 --output="$work/fio2.log") ||
    { cat "$work/fio2.log"; fail "fio unaligned"; }

echo "all NBD clients did what they must"
