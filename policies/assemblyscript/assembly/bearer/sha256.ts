// SHA-256 (FIPS 180-4). No maintained package offers it as AssemblyScript source, so it stands here, small, proven by
// the policy's self-test and by the cases with tokens around the length of a block.

/** Bytes of a digest. */
export const DIGEST_LENGTH = 32;

// First 32 bits of the fractional parts of the cube roots of the first 64 primes (§4.2.2).
const K: StaticArray<u32> = [
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

const W = new StaticArray<u32>(64);

/** The end of a message with what stands behind it, in one block or two. */
const LAST = new StaticArray<u8>(128);

/** Digest of `length` bytes at `address`. */
export function sha256(address: usize, length: i32): StaticArray<u8> {
  // §5.1.1: one bit, zeros, and the length in bits fill the last block.
  const rest = length & 63, whole = length - rest;
  const last = changetype<usize>(LAST), lastLength = rest < 56 ? 64 : 128;
  memory.fill(last, 0, lastLength);
  memory.copy(last, address + whole, rest);
  store<u8>(last + rest, 0x80);
  store<u64>(last + lastLength - 8, bswap<u64>(u64(length) << 3));

  // §5.3.3: the same of the square roots of the first eight.
  let h0: u32 = 0x6a09e667, h1: u32 = 0xbb67ae85, h2: u32 = 0x3c6ef372, h3: u32 = 0xa54ff53a;
  let h4: u32 = 0x510e527f, h5: u32 = 0x9b05688c, h6: u32 = 0x1f83d9ab, h7: u32 = 0x5be0cd19;

  for (let at = 0; at < whole + lastLength; at += 64) {
    const block = at < whole ? address + at : last + (at - whole);
    for (let t = 0; t < 16; t++) unchecked((W[t] = bswap<u32>(load<u32>(block + (t << 2)))));
    for (let t = 16; t < 64; t++) {
      const w15 = unchecked(W[t - 15]), w2 = unchecked(W[t - 2]);
      const s0 = rotr(w15, 7) ^ rotr(w15, 18) ^ (w15 >>> 3);
      const s1 = rotr(w2, 17) ^ rotr(w2, 19) ^ (w2 >>> 10);
      unchecked((W[t] = W[t - 16] + s0 + W[t - 7] + s1));
    }
    let a = h0, b = h1, c = h2, d = h3, e = h4, f = h5, g = h6, h = h7;
    for (let t = 0; t < 64; t++) {
      const sum1 = rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25);
      const t1 = h + sum1 + ((e & f) ^ (~e & g)) + unchecked(K[t]) + unchecked(W[t]);
      const sum0 = rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22);
      const t2 = sum0 + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    h0 += a, h1 += b, h2 += c, h3 += d, h4 += e, h5 += f, h6 += g, h7 += h;
  }

  const digest = new StaticArray<u8>(DIGEST_LENGTH);
  const to = changetype<usize>(digest);
  store<u32>(to, bswap<u32>(h0));
  store<u32>(to, bswap<u32>(h1), 4);
  store<u32>(to, bswap<u32>(h2), 8);
  store<u32>(to, bswap<u32>(h3), 12);
  store<u32>(to, bswap<u32>(h4), 16);
  store<u32>(to, bswap<u32>(h5), 20);
  store<u32>(to, bswap<u32>(h6), 24);
  store<u32>(to, bswap<u32>(h7), 28);
  return digest;
}
