// Bodies, data and values of fields are bytes; these are the two ways across, in UTF-8.

export function bytes(text: string): ArrayBuffer {
  return String.UTF8.encode(text);
}

/**
 * Reads UTF-8; what is none becomes U+FFFD. The language's own `String.UTF8.decode` takes bytes for text that are none
 * (a letter in two bytes is the letter to it), and what is compared with a name or a token must have one spelling.
 */
export function text(bytes: ArrayBuffer): string {
  const length = bytes.byteLength;
  let at = changetype<usize>(bytes);
  const end = at + length;
  if (isAscii(at, end)) return String.UTF8.decodeUnsafe(at, length);
  // There is no character with more code units than bytes.
  const units = new StaticArray<u16>(length);
  let count = 0;
  while (at < end) {
    const first = <u32>load<u8>(at++);
    if (first < 0x80) {
      units[count++] = u16(first);
      continue;
    }
    // The first byte says how many follow; the narrower limits leave out what has a shorter form, halves of
    // surrogates, and what lies behind the last plane.
    let missing = 0, lowest: u32 = 0x80, highest: u32 = 0xbf, point: u32 = 0;
    if (first >= 0xc2 && first <= 0xdf) {
      missing = 1, point = first & 0x1f;
    } else if (first >= 0xe0 && first <= 0xef) {
      missing = 2, point = first & 0x0f;
      if (first == 0xe0) lowest = 0xa0;
      if (first == 0xed) highest = 0x9f;
    } else if (first >= 0xf0 && first <= 0xf4) {
      missing = 3, point = first & 0x07;
      if (first == 0xf0) lowest = 0x90;
      if (first == 0xf4) highest = 0x8f;
    } else {
      point = 0xfffd;
    }
    while (missing > 0) {
      const next = at < end ? <u32>load<u8>(at) : 0;
      if (next < lowest || next > highest) {
        missing = 0, point = 0xfffd;
        break;
      }
      point = (point << 6) | (next & 0x3f);
      lowest = 0x80, highest = 0xbf;
      missing--, at++;
    }
    if (point < 0x10000) {
      units[count++] = u16(point);
    } else {
      units[count++] = u16(0xd800 | ((point - 0x10000) >> 10));
      units[count++] = u16(0xdc00 | (point & 0x3ff));
    }
  }
  return String.UTF16.decodeUnsafe(changetype<usize>(units), count << 1);
}

function isAscii(at: usize, end: usize): bool {
  for (; at + 8 <= end; at += 8) if (load<u64>(at) & 0x8080808080808080) return false;
  for (; at < end; at++) if (load<u8>(at) & 0x80) return false;
  return true;
}
