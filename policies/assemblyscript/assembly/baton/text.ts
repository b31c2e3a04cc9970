// Bodies, data and values of fields are bytes; these are the two ways across, in UTF-8.

export function bytes(text: string): ArrayBuffer {
  return String.UTF8.encode(text);
}

export function text(bytes: ArrayBuffer): string {
  return String.UTF8.decode(bytes);
}
