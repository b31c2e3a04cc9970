// The request that is being decided on. To be called inside a hook only; each call copies what it names, and no more.

import {
  RETURNED, bodyPrefixAt, bytesAt, bytesListAt, fieldsAt, optionalBytesAt, optionalBytesListAt, optionalI64At,
  optionalStringAt, optionalTlsAt, peerAt, putStrings, stringAt,
} from "./abi";
import { Result } from "./result";
import { text } from "./text";

export enum HttpVersion {
  Http10,
  Http11,
  Http2,
  Http3,
}

/** What can be done with the client's kernel socket right now. */
export enum Passable {
  /** The receiver gets the client's own socket. */
  Direct,
  /** TLS with its record layer in the kernel. */
  Ktls,
  /** A relay only: HTTP/2, or TLS in the gateway. */
  RelayOnly,
}

export enum BodyError {
  TooLarge,
  TimedOut,
  Closed,
  NotAvailable,
}

/** A header field: its name in lower case, its value as it was received. */
export class Field {
  constructor(
    public name: string,
    public bytes: ArrayBuffer,
  ) {}

  /** The value, read as UTF-8. */
  get value(): string {
    return text(this.bytes);
  }
}

/** Who is at the other end of the socket: an address, or a process of this machine. */
export class Peer {
  /** Empty for a process. */
  ip: string = "";
  port: u16 = 0;
  isUnix: bool = false;
  uid: u32 = 0;
  gid: u32 = 0;
  /** -1: not known. */
  pid: i64 = -1;

  static tcp(ip: string, port: u16): Peer {
    const peer = new Peer();
    peer.ip = ip;
    peer.port = port;
    return peer;
  }

  static unix(uid: u32, gid: u32, pid: i64): Peer {
    const peer = new Peer();
    peer.isUnix = true;
    peer.uid = uid;
    peer.gid = gid;
    peer.pid = pid;
    return peer;
  }
}

export class TlsInfo {
  constructor(
    public version: string,
    public cipher: string,
    public sni: string | null,
    public alpn: string | null,
    /** The client's certificate was presented and verified. */
    public clientVerified: bool,
  ) {}
}

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
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "request-target")
declare function importRequestTarget(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "version")
declare function importVersion(): i32;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "header-many")
declare function importHeaderMany(names: usize, count: i32, returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "headers")
declare function importHeaders(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "headers-raw")
declare function importHeadersRaw(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "peer")
declare function importPeer(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "local-address")
declare function importLocalAddress(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "tls")
declare function importTls(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "client-certificate")
declare function importClientCertificate(returned: usize): void;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "passability")
declare function importPassability(): i32;
// @ts-ignore: decorator
@external("baton:policy/request@0.1.0", "body-prefix")
declare function importBodyPrefix(max: u32, returned: usize): void;

/** Unique; also sent to targets and logs. */
export function id(): string {
  importId(RETURNED);
  return stringAt(RETURNED);
}

export function method(): string {
  importMethod(RETURNED);
  return stringAt(RETURNED);
}

/** As the client wrote it: what a signature over a URL was made of. Never decide by it what `path` decides. */
export function requestTarget(): string {
  importRequestTarget(RETURNED);
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

export function version(): HttpVersion {
  return importVersion();
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
  return bytes === null ? null : text(bytes);
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

const NAMES: usize = memory.data(8, 4);

/** First values of many fields in one call, in the same order. */
export function headerMany(names: string[]): (ArrayBuffer | null)[] {
  putStrings(NAMES, names);
  importHeaderMany(load<usize>(NAMES), names.length, RETURNED);
  return optionalBytesListAt(RETURNED);
}

/** All fields. */
export function headers(): Field[] {
  importHeaders(RETURNED);
  return fieldsAt(RETURNED);
}

/** All fields as `name: value` and a line break each, in one block: the cheapest form of many. */
export function headersRaw(): ArrayBuffer {
  importHeadersRaw(RETURNED);
  return bytesAt(RETURNED);
}

export function cookie(name: string): string | null {
  importCookie(changetype<usize>(name), name.length, RETURNED);
  return optionalStringAt(RETURNED);
}

export function queryParam(name: string): string | null {
  importQueryParam(changetype<usize>(name), name.length, RETURNED);
  return optionalStringAt(RETURNED);
}

/** The other end of the socket, which may be a proxy. */
export function peer(): Peer {
  importPeer(RETURNED);
  return peerAt(RETURNED);
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

export function localAddress(): string {
  importLocalAddress(RETURNED);
  return stringAt(RETURNED);
}

/** Null when the connection is not encrypted. */
export function tls(): TlsInfo | null {
  importTls(RETURNED);
  return optionalTlsAt(RETURNED);
}

/** The client's certificate in DER; null when it presented none. */
export function clientCertificate(): ArrayBuffer | null {
  importClientCertificate(RETURNED);
  return optionalBytesAt(RETURNED);
}

export function passability(): Passable {
  return importPassability();
}

/** Declared length of the body; -1 when it is chunked. */
export function contentLength(): i64 {
  importContentLength(RETURNED);
  return optionalI64At(RETURNED, -1);
}

/** Waits for up to `max` bytes of the body. They stay where they are for whoever gets the request. */
export function bodyPrefix(max: u32): Result<ArrayBuffer, BodyError> {
  importBodyPrefix(max, RETURNED);
  return bodyPrefixAt(RETURNED);
}
