// The request that is being decided on. To be called inside a hook only; each call copies what it names, and no more.

import { RETURNED, bytesListAt, optionalBytesAt, optionalStringAt, stringAt } from "./abi";

// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "id")
declare function importId(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "method")
declare function importMethod(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "path")
declare function importPath(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "query")
declare function importQuery(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "authority")
declare function importAuthority(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "scheme")
declare function importScheme(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "route")
declare function importRoute(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "param")
declare function importParam(name: usize, length: i32, returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "header")
declare function importHeader(name: usize, length: i32, returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "header-all")
declare function importHeaderAll(name: usize, length: i32, returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "cookie")
declare function importCookie(name: usize, length: i32, returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "query-param")
declare function importQueryParam(name: usize, length: i32, returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "client-ip")
declare function importClientIp(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "listener")
declare function importListener(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "content-length")
declare function importContentLength(returned: usize): void;

/** Unique; also sent to targets and logs. */
export function id(): string {
  importId(RETURNED);
  return stringAt(RETURNED);
}

export function method(): string {
  importMethod(RETURNED);
  return stringAt(RETURNED);
}

/** Normalised, without the query. */
export function path(): string {
  importPath(RETURNED);
  return stringAt(RETURNED);
}

/** What stands behind the question mark; null when there is none. */
export function query(): string | null {
  importQuery(RETURNED);
  return optionalStringAt(RETURNED);
}

/** Host in lower case, with its port. */
export function authority(): string {
  importAuthority(RETURNED);
  return stringAt(RETURNED);
}

export function scheme(): string {
  importScheme(RETURNED);
  return stringAt(RETURNED);
}

/** The route that matched. */
export function route(): string | null {
  importRoute(RETURNED);
  return optionalStringAt(RETURNED);
}

/** What the route captured under a name. */
export function param(name: string): string | null {
  importParam(changetype<usize>(name), name.length, RETURNED);
  return optionalStringAt(RETURNED);
}

/** First value of a field, read as UTF-8; null when there is none. */
export function header(name: string): string | null {
  const bytes = headerBytes(name);
  return bytes === null ? null : String.UTF8.decode(bytes);
}

/** First value of a field, as it was received. */
export function headerBytes(name: string): ArrayBuffer | null {
  importHeader(changetype<usize>(name), name.length, RETURNED);
  return optionalBytesAt(RETURNED);
}

/** All values of a field, as they were received. */
export function headerAll(name: string): ArrayBuffer[] {
  importHeaderAll(changetype<usize>(name), name.length, RETURNED);
  return bytesListAt(RETURNED);
}

export function cookie(name: string): string | null {
  importCookie(changetype<usize>(name), name.length, RETURNED);
  return optionalStringAt(RETURNED);
}

export function queryParam(name: string): string | null {
  importQueryParam(changetype<usize>(name), name.length, RETURNED);
  return optionalStringAt(RETURNED);
}

/** The client, after trusted proxies have been believed. */
export function clientIp(): string {
  importClientIp(RETURNED);
  return stringAt(RETURNED);
}

export function listener(): string {
  importListener(RETURNED);
  return stringAt(RETURNED);
}

/** Declared length of the body; -1 when it is chunked. */
export function contentLength(): i64 {
  importContentLength(RETURNED);
  return load<u8>(RETURNED) == 0 ? -1 : load<i64>(RETURNED, 8);
}
