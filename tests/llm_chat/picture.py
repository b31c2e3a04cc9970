"""What is to be seen in a picture: PNG in base64 on standard input; its size, how many colours there are, and how many pixels
each of the most frequent ones has, as JSON on standard output. With arguments X,Y: the colours at those places too."""

import base64
import collections
import json
import struct
import sys
import zlib

png = base64.b64decode(sys.stdin.read())
assert png[:8] == b"\x89PNG\r\n\x1a\n", "no PNG"
data, at = b"", 8
while at < len(png):
    length, kind = struct.unpack(">I4s", png[at:at + 8])
    part, at = png[at + 8:at + 8 + length], at + 12 + length
    assert zlib.crc32(kind + part) == struct.unpack(">I", png[at - 4:at])[0], "a broken chunk"
    if kind == b"IHDR":
        width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", part)
        assert (depth, interlaced) == (8, 0) and colour in (2, 6), f"PNG of depth {depth}, type {colour}, {interlaced}"
    elif kind == b"IDAT":
        data += part
size = 3 if colour == 2 else 4
stride, data = width * size, zlib.decompress(data)
above, rows = bytearray(stride), []
for y in range(height):
    how, row = data[y * (stride + 1)], bytearray(data[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
    for x in range(stride) if how else ():
        left, up, corner = row[x - size] if x >= size else 0, above[x], above[x - size] if x >= size else 0
        if how == 1:
            guess = left
        elif how == 2:
            guess = up
        elif how == 3:
            guess = (left + up) // 2
        else:
            sum_ = left + up - corner
            guess = min((left, up, corner), key=lambda one: abs(sum_ - one))
        row[x] = (row[x] + guess) & 0xFF
    rows.append(row)
    above = row


def colour_at(x, y):
    return "#" + rows[y][x * size:x * size + 3].hex()


counts = collections.Counter(colour_at(x, y) for y in range(height) for x in range(width))
places = [colour_at(*map(int, place.split(","))) for place in sys.argv[1:]]
print(json.dumps({"width": width, "height": height, "colours": len(counts), "most": dict(counts.most_common(12)), "at": places}))
