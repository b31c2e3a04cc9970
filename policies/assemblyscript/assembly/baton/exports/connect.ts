import { lowerConnectionAction, optionalStringOf, peerOf, stringOf, stringsOf } from "../abi";
import { Connection } from "../connection";
import { connect } from "../hooks";

export { collect as on_connect_post } from "../abi";

export function on_connect(
  listener: usize, listenerLength: i32,
  peerKind: i32, peer1: usize, peer2: i32, peer3: i32, peer4: i32,
  local: usize, localLength: i32,
  hasSni: i32, sni: usize, sniLength: i32,
  alpn: usize, alpnCount: i32,
): usize {
  const connection = new Connection(
    stringOf(listener, listenerLength),
    peerOf(peerKind, peer1, peer2, peer3, peer4),
    stringOf(local, localLength),
    optionalStringOf(hasSni, sni, sniLength),
    stringsOf(alpn, alpnCount),
  );
  return lowerConnectionAction(connect(connection));
}
