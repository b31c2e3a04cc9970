/* Baton's contract with policies, for C.
 *
 * Written by policies/c/generate from wit/policy.wit; parts/begin.h and parts/end.h are what stands around it. Plain C11,
 * no libc. Every type of the contract is the struct that lies in memory, every import a function, every hook a macro:
 *
 *     #define BATON_IMPLEMENTATION        // in one file of the policy
 *     #include "baton.h"
 *
 *     static baton_decision decide(void)
 *     {
 *         if (!baton_request_header(BATON_STR("x-deny")).is_some)
 *             return baton_decide_handoff(BATON_STR("chat"), BATON_BYTES("hello"));
 *         baton_decision decision = baton_decide_respond(403, BATON_BYTES("no\n"));
 *         baton_add_header(&decision, BATON_STR("x-why"), BATON_BYTES("asked to"));
 *         return decision;
 *     }
 *
 *     BATON_ON_REQUEST(decide)
 *
 * Strings are pointer and length, and nothing stands behind the last byte. What imports return, and what baton_alloc gives,
 * lives until the hook's answer has been read; then all of it is gone at once. Nothing is ever freed by hand.
 */
#ifndef BATON_H
#define BATON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef __wasm32__
#error "a policy is built for wasm32: zig cc --target=wasm32-freestanding, or clang --target=wasm32"
#endif

/* UTF-8. */
typedef struct {
    const char *ptr;
    uint32_t len;
} baton_string;

typedef struct {
    const uint8_t *ptr;
    uint32_t len;
} baton_bytes;

/* Of a string literal. */
#define BATON_STR(literal) ((baton_string){(literal), sizeof(literal) - 1})
#define BATON_BYTES(literal) ((baton_bytes){(const uint8_t *)(literal), sizeof(literal) - 1})

/* Room that lives until the hook's answer has been read. Never NULL: where the policy's memory_max is reached, it traps,
 * and the gateway names the limit. */
void *baton_alloc(uint32_t size, uint32_t align);

/* Everything that lives now lives for ever: what configure has read. */
void baton_keep(void);

/* What the hooks' macros do when an answer has been read. */
void baton_reset(void);

/* === types === */

/* Name in lower case; value in raw bytes. Repeated names repeat the entry. */
typedef struct {
    baton_string name;
    baton_bytes value;
} baton_field;
_Static_assert(sizeof(baton_field) == 16, "baton_field");
_Static_assert(offsetof(baton_field, name) == 0, "baton_field.name");
_Static_assert(offsetof(baton_field, value) == 8, "baton_field.value");

enum {
    BATON_HTTP_VERSION_HTTP10,
    BATON_HTTP_VERSION_HTTP11,
    BATON_HTTP_VERSION_HTTP2,
    BATON_HTTP_VERSION_HTTP3,
};
typedef uint8_t baton_http_version;

/* What can be done with the client's kernel socket right now. */
enum {
    /* Clear-text HTTP/1: the receiver gets the client's own socket. */
    BATON_PASSABLE_DIRECT,
    /* TLS with its record layer in the kernel: receiver reads/writes plain text. */
    BATON_PASSABLE_KTLS,
    /* HTTP/2+ or user-space TLS: only `relay` handoff (a socket pair) works. */
    BATON_PASSABLE_RELAY_ONLY,
};
typedef uint8_t baton_passable;

typedef struct {
    baton_string ip;
    uint16_t port;
} baton_tcp_peer;
_Static_assert(sizeof(baton_tcp_peer) == 12, "baton_tcp_peer");
_Static_assert(offsetof(baton_tcp_peer, ip) == 0, "baton_tcp_peer.ip");
_Static_assert(offsetof(baton_tcp_peer, port) == 8, "baton_tcp_peer.port");

typedef struct {
    bool is_some;
    uint32_t value;
} baton_option_u32;
_Static_assert(sizeof(baton_option_u32) == 8, "baton_option_u32");
_Static_assert(offsetof(baton_option_u32, value) == 4, "baton_option_u32.value");

typedef struct {
    uint32_t uid;
    uint32_t gid;
    baton_option_u32 pid;
} baton_unix_peer;
_Static_assert(sizeof(baton_unix_peer) == 16, "baton_unix_peer");
_Static_assert(offsetof(baton_unix_peer, uid) == 0, "baton_unix_peer.uid");
_Static_assert(offsetof(baton_unix_peer, gid) == 4, "baton_unix_peer.gid");
_Static_assert(offsetof(baton_unix_peer, pid) == 8, "baton_unix_peer.pid");

enum {
    BATON_PEER_ADDRESS_TCP,
    BATON_PEER_ADDRESS_UNIX,
};
typedef struct {
    uint8_t tag;
    union {
        baton_tcp_peer tcp;
        baton_unix_peer unix;
    } of;
} baton_peer_address;
_Static_assert(sizeof(baton_peer_address) == 20, "baton_peer_address");
_Static_assert(offsetof(baton_peer_address, of) == 4, "baton_peer_address.of");

typedef struct {
    bool is_some;
    baton_string value;
} baton_option_string;
_Static_assert(sizeof(baton_option_string) == 12, "baton_option_string");
_Static_assert(offsetof(baton_option_string, value) == 4, "baton_option_string.value");

typedef struct {
    baton_string version;
    baton_string cipher;
    baton_option_string sni;
    baton_option_string alpn;
    /* The client's certificate was presented and verified. */
    bool client_verified;
} baton_tls_info;
_Static_assert(sizeof(baton_tls_info) == 44, "baton_tls_info");
_Static_assert(offsetof(baton_tls_info, version) == 0, "baton_tls_info.version");
_Static_assert(offsetof(baton_tls_info, cipher) == 8, "baton_tls_info.cipher");
_Static_assert(offsetof(baton_tls_info, sni) == 16, "baton_tls_info.sni");
_Static_assert(offsetof(baton_tls_info, alpn) == 28, "baton_tls_info.alpn");
_Static_assert(offsetof(baton_tls_info, client_verified) == 40, "baton_tls_info.client_verified");

typedef struct {
    const baton_field *ptr;
    uint32_t len;
} baton_list_field;
_Static_assert(sizeof(baton_list_field) == 8, "baton_list_field");

/* When the gateway must still write to the client before it lets go. */
typedef struct {
    uint16_t status;
    baton_list_field headers;
} baton_response_head;
_Static_assert(sizeof(baton_response_head) == 12, "baton_response_head");
_Static_assert(offsetof(baton_response_head, status) == 0, "baton_response_head.status");
_Static_assert(offsetof(baton_response_head, headers) == 4, "baton_response_head.headers");

enum {
    BATON_RELAY_MODE_NEVER,
    BATON_RELAY_MODE_IF_NEEDED,
    BATON_RELAY_MODE_ALWAYS,
};
typedef uint8_t baton_relay_mode;

typedef struct {
    baton_string f0;
    baton_string f1;
} baton_tuple_string_string;
_Static_assert(sizeof(baton_tuple_string_string) == 16, "baton_tuple_string_string");
_Static_assert(offsetof(baton_tuple_string_string, f0) == 0, "baton_tuple_string_string.f0");
_Static_assert(offsetof(baton_tuple_string_string, f1) == 8, "baton_tuple_string_string.f1");

typedef struct {
    const baton_tuple_string_string *ptr;
    uint32_t len;
} baton_list_tuple_string_string;
_Static_assert(sizeof(baton_list_tuple_string_string) == 8, "baton_list_tuple_string_string");

typedef struct {
    bool is_some;
    baton_response_head value;
} baton_option_response_head;
_Static_assert(sizeof(baton_option_response_head) == 16, "baton_option_response_head");
_Static_assert(offsetof(baton_option_response_head, value) == 4, "baton_option_response_head.value");

typedef struct {
    const baton_string *ptr;
    uint32_t len;
} baton_list_string;
_Static_assert(sizeof(baton_list_string) == 8, "baton_list_string");

/* Give the connection to a named target. */
typedef struct {
    /* Target, group or (when the configuration allows it) socket path. */
    baton_string target;
    /* Opaque bytes delivered together with the descriptor. */
    baton_bytes data;
    /* Extra key/value metadata; travels in the native dialect only. */
    baton_list_tuple_string_string metadata;
    /* Written and flushed to the client before the descriptor is sent. */
    baton_option_response_head response_head;
    /* Deliver the request head exactly as it was received. In the dialects
     * whose message is one run of bytes, `data` must then be empty. */
    bool include_head;
    baton_relay_mode relay;
    /* Connect + send + acknowledgement limit; none = target's default. */
    baton_option_u32 timeout_ms;
    /* Targets to try in order before `on-handoff-failed` is called. */
    baton_list_string alternates;
    /* First bytes of the answer's body, written right behind `response-head`;
     * empty where there is no such head. */
    baton_bytes response_body;
} baton_handoff;
_Static_assert(sizeof(baton_handoff) == 68, "baton_handoff");
_Static_assert(offsetof(baton_handoff, target) == 0, "baton_handoff.target");
_Static_assert(offsetof(baton_handoff, data) == 8, "baton_handoff.data");
_Static_assert(offsetof(baton_handoff, metadata) == 16, "baton_handoff.metadata");
_Static_assert(offsetof(baton_handoff, response_head) == 24, "baton_handoff.response_head");
_Static_assert(offsetof(baton_handoff, include_head) == 40, "baton_handoff.include_head");
_Static_assert(offsetof(baton_handoff, relay) == 41, "baton_handoff.relay");
_Static_assert(offsetof(baton_handoff, timeout_ms) == 44, "baton_handoff.timeout_ms");
_Static_assert(offsetof(baton_handoff, alternates) == 52, "baton_handoff.alternates");
_Static_assert(offsetof(baton_handoff, response_body) == 60, "baton_handoff.response_body");

/* Changes to a message that continues on its way. Removal happens first. */
typedef struct {
    baton_list_string remove;
    baton_list_field set;
    baton_list_field append;
} baton_edits;
_Static_assert(sizeof(baton_edits) == 24, "baton_edits");
_Static_assert(offsetof(baton_edits, remove) == 0, "baton_edits.remove");
_Static_assert(offsetof(baton_edits, set) == 8, "baton_edits.set");
_Static_assert(offsetof(baton_edits, append) == 16, "baton_edits.append");

typedef struct {
    /* Upstream or upstream group named in the configuration. */
    baton_string upstream;
    /* Replaces path and query when present. */
    baton_option_string path_and_query;
    baton_edits request;
    baton_option_u32 timeout_ms;
    /* Call `on-response` with the upstream's response head. */
    bool inspect_response;
} baton_proxy;
_Static_assert(sizeof(baton_proxy) == 56, "baton_proxy");
_Static_assert(offsetof(baton_proxy, upstream) == 0, "baton_proxy.upstream");
_Static_assert(offsetof(baton_proxy, path_and_query) == 8, "baton_proxy.path_and_query");
_Static_assert(offsetof(baton_proxy, request) == 20, "baton_proxy.request");
_Static_assert(offsetof(baton_proxy, timeout_ms) == 44, "baton_proxy.timeout_ms");
_Static_assert(offsetof(baton_proxy, inspect_response) == 52, "baton_proxy.inspect_response");

typedef struct {
    uint16_t status;
    baton_list_field headers;
    baton_bytes body;
} baton_respond;
_Static_assert(sizeof(baton_respond) == 20, "baton_respond");
_Static_assert(offsetof(baton_respond, status) == 0, "baton_respond.status");
_Static_assert(offsetof(baton_respond, headers) == 4, "baton_respond.headers");
_Static_assert(offsetof(baton_respond, body) == 12, "baton_respond.body");

/* What shall happen now. */
enum {
    /* No opinion: request phase = next policy, then the route's default;
     * response phase = deliver the response; failure phase = gateway default. */
    BATON_ACTION_PASS,
    BATON_ACTION_HANDOFF,
    BATON_ACTION_PROXY,
    BATON_ACTION_RESPOND,
    /* Close the connection without a response. */
    BATON_ACTION_ABORT,
};
typedef struct {
    uint8_t tag;
    union {
        baton_edits pass;
        baton_handoff handoff;
        baton_proxy proxy;
        baton_respond respond;
    } of;
} baton_action;
_Static_assert(sizeof(baton_action) == 72, "baton_action");
_Static_assert(offsetof(baton_action, of) == 4, "baton_action.of");

typedef struct {
    baton_action action;
    /* Handed unchanged to later hooks of this request (max 64 KiB). */
    baton_bytes carry;
    /* Added to the access log (last value of a key wins) and trace span. */
    baton_list_tuple_string_string annotations;
} baton_decision;
_Static_assert(sizeof(baton_decision) == 88, "baton_decision");
_Static_assert(offsetof(baton_decision, action) == 0, "baton_decision.action");
_Static_assert(offsetof(baton_decision, carry) == 72, "baton_decision.carry");
_Static_assert(offsetof(baton_decision, annotations) == 80, "baton_decision.annotations");

/* === request ===
 *
 * The request being handled. Ambient: valid inside the request, response and
 * failure hooks (an instance handles one request at a time); a call at any
 * other time traps. Each call copies only what it names.
 */

enum {
    BATON_BODY_ERROR_TOO_LARGE,
    BATON_BODY_ERROR_TIMED_OUT,
    BATON_BODY_ERROR_CLOSED,
    BATON_BODY_ERROR_NOT_AVAILABLE,
};
typedef uint8_t baton_body_error;

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("id")))
extern void baton_request_id_(void *);
/* Unique, also sent to targets and logs. */
static inline baton_string baton_request_id(void)
{
    baton_string result;
    baton_request_id_(&result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("method")))
extern void baton_request_method_(void *);
static inline baton_string baton_request_method(void)
{
    baton_string result;
    baton_request_method_(&result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("request-target")))
extern void baton_request_request_target_(void *);
/* The request-target as the client wrote it (RFC 9112 3.2): what a
 * signature over a URL was made of. Never decide by it what `path` decides. */
static inline baton_string baton_request_request_target(void)
{
    baton_string result;
    baton_request_request_target_(&result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("path")))
extern void baton_request_path_(void *);
/* Normalised path, no query. */
static inline baton_string baton_request_path(void)
{
    baton_string result;
    baton_request_path_(&result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("query")))
extern void baton_request_query_(void *);
static inline baton_option_string baton_request_query(void)
{
    baton_option_string result;
    baton_request_query_(&result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("authority")))
extern void baton_request_authority_(void *);
/* `:authority` or Host, lower case, port kept. */
static inline baton_string baton_request_authority(void)
{
    baton_string result;
    baton_request_authority_(&result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("scheme")))
extern void baton_request_scheme_(void *);
static inline baton_string baton_request_scheme(void)
{
    baton_string result;
    baton_request_scheme_(&result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("version")))
extern uint32_t baton_request_version_(void);
static inline baton_http_version baton_request_version(void)
{
    return (baton_http_version)baton_request_version_();
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("route")))
extern void baton_request_route_(void *);
/* Route and captures that the native router matched. */
static inline baton_option_string baton_request_route(void)
{
    baton_option_string result;
    baton_request_route_(&result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("param")))
extern void baton_request_param_(uint32_t, uint32_t, void *);
static inline baton_option_string baton_request_param(baton_string name)
{
    baton_option_string result;
    baton_request_param_((uint32_t)(uintptr_t)name.ptr, (uint32_t)name.len, &result);
    return result;
}

typedef struct {
    bool is_some;
    baton_bytes value;
} baton_option_bytes;
_Static_assert(sizeof(baton_option_bytes) == 12, "baton_option_bytes");
_Static_assert(offsetof(baton_option_bytes, value) == 4, "baton_option_bytes.value");

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("header")))
extern void baton_request_header_(uint32_t, uint32_t, void *);
/* First value; none when absent. */
static inline baton_option_bytes baton_request_header(baton_string name)
{
    baton_option_bytes result;
    baton_request_header_((uint32_t)(uintptr_t)name.ptr, (uint32_t)name.len, &result);
    return result;
}

typedef struct {
    const baton_bytes *ptr;
    uint32_t len;
} baton_list_bytes;
_Static_assert(sizeof(baton_list_bytes) == 8, "baton_list_bytes");

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("header-all")))
extern void baton_request_header_all_(uint32_t, uint32_t, void *);
static inline baton_list_bytes baton_request_header_all(baton_string name)
{
    baton_list_bytes result;
    baton_request_header_all_((uint32_t)(uintptr_t)name.ptr, (uint32_t)name.len, &result);
    return result;
}

typedef struct {
    const baton_option_bytes *ptr;
    uint32_t len;
} baton_list_option_bytes;
_Static_assert(sizeof(baton_list_option_bytes) == 8, "baton_list_option_bytes");

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("header-many")))
extern void baton_request_header_many_(uint32_t, uint32_t, void *);
/* Many names in one call, results in the same order. */
static inline baton_list_option_bytes baton_request_header_many(baton_list_string names)
{
    baton_list_option_bytes result;
    baton_request_header_many_((uint32_t)(uintptr_t)names.ptr, (uint32_t)names.len, &result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("headers")))
extern void baton_request_headers_(void *);
/* Everything. Costs one guest allocation per name and value. */
static inline baton_list_field baton_request_headers(void)
{
    baton_list_field result;
    baton_request_headers_(&result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("headers-raw")))
extern void baton_request_headers_raw_(void *);
/* Everything as `name: value\r\n` lines in one block (cheapest bulk form). */
static inline baton_bytes baton_request_headers_raw(void)
{
    baton_bytes result;
    baton_request_headers_raw_(&result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("cookie")))
extern void baton_request_cookie_(uint32_t, uint32_t, void *);
static inline baton_option_string baton_request_cookie(baton_string name)
{
    baton_option_string result;
    baton_request_cookie_((uint32_t)(uintptr_t)name.ptr, (uint32_t)name.len, &result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("query-param")))
extern void baton_request_query_param_(uint32_t, uint32_t, void *);
static inline baton_option_string baton_request_query_param(baton_string name)
{
    baton_option_string result;
    baton_request_query_param_((uint32_t)(uintptr_t)name.ptr, (uint32_t)name.len, &result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("peer")))
extern void baton_request_peer_(void *);
/* Direct peer of the socket. */
static inline baton_peer_address baton_request_peer(void)
{
    baton_peer_address result;
    baton_request_peer_(&result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("client-ip")))
extern void baton_request_client_ip_(void *);
/* Client after trusted-proxy processing (PROXY protocol, Forwarded). */
static inline baton_string baton_request_client_ip(void)
{
    baton_string result;
    baton_request_client_ip_(&result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("local-address")))
extern void baton_request_local_address_(void *);
static inline baton_string baton_request_local_address(void)
{
    baton_string result;
    baton_request_local_address_(&result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("listener")))
extern void baton_request_listener_(void *);
static inline baton_string baton_request_listener(void)
{
    baton_string result;
    baton_request_listener_(&result);
    return result;
}

typedef struct {
    bool is_some;
    baton_tls_info value;
} baton_option_tls_info;
_Static_assert(sizeof(baton_option_tls_info) == 48, "baton_option_tls_info");
_Static_assert(offsetof(baton_option_tls_info, value) == 4, "baton_option_tls_info.value");

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("tls")))
extern void baton_request_tls_(void *);
static inline baton_option_tls_info baton_request_tls(void)
{
    baton_option_tls_info result;
    baton_request_tls_(&result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("client-certificate")))
extern void baton_request_client_certificate_(void *);
/* Leaf certificate in DER. */
static inline baton_option_bytes baton_request_client_certificate(void)
{
    baton_option_bytes result;
    baton_request_client_certificate_(&result);
    return result;
}

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("passability")))
extern uint32_t baton_request_passability_(void);
static inline baton_passable baton_request_passability(void)
{
    return (baton_passable)baton_request_passability_();
}

typedef struct {
    bool is_some;
    uint64_t value;
} baton_option_u64;
_Static_assert(sizeof(baton_option_u64) == 16, "baton_option_u64");
_Static_assert(offsetof(baton_option_u64, value) == 8, "baton_option_u64.value");

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("content-length")))
extern void baton_request_content_length_(void *);
/* Declared body length; none = chunked or unknown. */
static inline baton_option_u64 baton_request_content_length(void)
{
    baton_option_u64 result;
    baton_request_content_length_(&result);
    return result;
}

typedef struct {
    bool is_err;
    union {
        baton_bytes ok;
        baton_body_error err;
    } of;
} baton_result_bytes_body_error;
_Static_assert(sizeof(baton_result_bytes_body_error) == 12, "baton_result_bytes_body_error");
_Static_assert(offsetof(baton_result_bytes_body_error, of) == 4, "baton_result_bytes_body_error.of");

__attribute__((import_module("baton:policy/request@0.1.0"), import_name("body-prefix")))
extern void baton_request_body_prefix_(uint32_t, void *);
/* Waits for up to `max` bytes of body. The bytes stay queued: they are
 * replayed to the upstream or delivered with the handoff. */
static inline baton_result_bytes_body_error baton_request_body_prefix(uint32_t max)
{
    baton_result_bytes_body_error result;
    baton_request_body_prefix_((uint32_t)max, &result);
    return result;
}

/* === response ===
 *
 * The upstream's response head; valid inside `on-response` only.
 */

__attribute__((import_module("baton:policy/response@0.1.0"), import_name("status")))
extern uint32_t baton_response_status_(void);
static inline uint16_t baton_response_status(void)
{
    return (uint16_t)baton_response_status_();
}

__attribute__((import_module("baton:policy/response@0.1.0"), import_name("header")))
extern void baton_response_header_(uint32_t, uint32_t, void *);
static inline baton_option_bytes baton_response_header(baton_string name)
{
    baton_option_bytes result;
    baton_response_header_((uint32_t)(uintptr_t)name.ptr, (uint32_t)name.len, &result);
    return result;
}

__attribute__((import_module("baton:policy/response@0.1.0"), import_name("headers")))
extern void baton_response_headers_(void *);
static inline baton_list_field baton_response_headers(void)
{
    baton_list_field result;
    baton_response_headers_(&result);
    return result;
}

__attribute__((import_module("baton:policy/response@0.1.0"), import_name("upstream")))
extern void baton_response_upstream_(void *);
static inline baton_string baton_response_upstream(void)
{
    baton_string result;
    baton_response_upstream_(&result);
    return result;
}

__attribute__((import_module("baton:policy/response@0.1.0"), import_name("elapsed-us")))
extern uint64_t baton_response_elapsed_us_(void);
static inline uint64_t baton_response_elapsed_us(void)
{
    return (uint64_t)baton_response_elapsed_us_();
}

/* === connection-hook === */

typedef struct {
    baton_string listener;
    baton_peer_address peer;
    baton_string local_address;
    /* From the TLS client hello, when the listener peeks at it. */
    baton_option_string sni;
    baton_list_string alpn;
} baton_connection;
_Static_assert(sizeof(baton_connection) == 56, "baton_connection");
_Static_assert(offsetof(baton_connection, listener) == 0, "baton_connection.listener");
_Static_assert(offsetof(baton_connection, peer) == 8, "baton_connection.peer");
_Static_assert(offsetof(baton_connection, local_address) == 28, "baton_connection.local_address");
_Static_assert(offsetof(baton_connection, sni) == 36, "baton_connection.sni");
_Static_assert(offsetof(baton_connection, alpn) == 48, "baton_connection.alpn");

/* `handoff` here passes the untouched socket, before TLS and HTTP. */
enum {
    BATON_CONNECTION_ACTION_ACCEPT,
    BATON_CONNECTION_ACTION_REJECT,
    BATON_CONNECTION_ACTION_HANDOFF,
};
typedef struct {
    uint8_t tag;
    union {
        baton_handoff handoff;
    } of;
} baton_connection_action;
_Static_assert(sizeof(baton_connection_action) == 72, "baton_connection_action");
_Static_assert(offsetof(baton_connection_action, of) == 4, "baton_connection_action.of");

/* Exported by BATON_ON_CONNECT(hook), where hook is: baton_connection_action hook(baton_connection) */
#define BATON_ON_CONNECT(hook) \
    __attribute__((export_name("on_connect"))) \
    const void *baton_export_on_connect(uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t a4, uint32_t a5, uint32_t a6, uint32_t a7, uint32_t a8, uint32_t a9, uint32_t a10, uint32_t a11, uint32_t a12, uint32_t a13) \
    { \
        baton_connection p0; \
        p0.listener.ptr = (const void *)(uintptr_t)a0; \
        p0.listener.len = a1; \
        p0.peer.tag = (uint8_t)a2; \
        if (a2 == 0) { \
            p0.peer.of.tcp.ip.ptr = (const void *)(uintptr_t)a3; \
            p0.peer.of.tcp.ip.len = a4; \
            p0.peer.of.tcp.port = (uint16_t)a5; \
        } \
        if (a2 == 1) { \
            p0.peer.of.unix.uid = (uint32_t)a3; \
            p0.peer.of.unix.gid = (uint32_t)a4; \
            p0.peer.of.unix.pid.is_some = (bool)a5; \
            p0.peer.of.unix.pid.value = (uint32_t)a6; \
        } \
        p0.local_address.ptr = (const void *)(uintptr_t)a7; \
        p0.local_address.len = a8; \
        p0.sni.is_some = (bool)a9; \
        p0.sni.value.ptr = (const void *)(uintptr_t)a10; \
        p0.sni.value.len = a11; \
        p0.alpn.ptr = (const void *)(uintptr_t)a12; \
        p0.alpn.len = a13; \
        static baton_connection_action result; \
        result = hook(p0); \
        return &result; \
    } \
    __attribute__((export_name("on_connect_post"))) \
    void baton_export_on_connect_post(const void *result) \
    { \
        (void)result; \
        baton_reset(); \
    }

/* === request-hook === */

/* Once per request, after its head has been read.
 * Exported by BATON_ON_REQUEST(hook), where hook is: baton_decision hook(void) */
#define BATON_ON_REQUEST(hook) \
    __attribute__((export_name("on_request"))) \
    const void *baton_export_on_request(void) \
    { \
        static baton_decision result; \
        result = hook(); \
        return &result; \
    } \
    __attribute__((export_name("on_request_post"))) \
    void baton_export_on_request_post(const void *result) \
    { \
        (void)result; \
        baton_reset(); \
    }

/* === response-hook === */

/* Upstream's head arrived, nothing sent to the client yet. The place to
 * turn `X-Socket-Handoff` style answers into a handoff.
 * Exported by BATON_ON_RESPONSE(hook), where hook is: baton_decision hook(baton_bytes) */
#define BATON_ON_RESPONSE(hook) \
    __attribute__((export_name("on_response"))) \
    const void *baton_export_on_response(uint32_t a0, uint32_t a1) \
    { \
        baton_bytes p0; \
        p0.ptr = (const void *)(uintptr_t)a0; \
        p0.len = a1; \
        static baton_decision result; \
        result = hook(p0); \
        return &result; \
    } \
    __attribute__((export_name("on_response_post"))) \
    void baton_export_on_response_post(const void *result) \
    { \
        (void)result; \
        baton_reset(); \
    }

/* === failure-hook === */

enum {
    BATON_STAGE_RESOLVE,
    BATON_STAGE_CONNECT,
    BATON_STAGE_SEND,
    BATON_STAGE_ACKNOWLEDGE,
    BATON_STAGE_REJECTED,
    BATON_STAGE_UPSTREAM,
};
typedef uint8_t baton_stage;

typedef struct {
    bool is_some;
    int32_t value;
} baton_option_s32;
_Static_assert(sizeof(baton_option_s32) == 8, "baton_option_s32");
_Static_assert(offsetof(baton_option_s32, value) == 4, "baton_option_s32.value");

typedef struct {
    /* Target or upstream that failed last. */
    baton_string target;
    baton_stage stage;
    /* Linux errno when there is one. */
    baton_option_s32 errno;
    baton_string message;
    /* 1 the first time that this hook is asked about a request; at most 3. */
    uint32_t attempt;
    /* False once bytes went to the client or the descriptor may have left:
     * then only `pass` and `abort` are honoured. */
    bool retryable;
} baton_failure;
_Static_assert(sizeof(baton_failure) == 36, "baton_failure");
_Static_assert(offsetof(baton_failure, target) == 0, "baton_failure.target");
_Static_assert(offsetof(baton_failure, stage) == 8, "baton_failure.stage");
_Static_assert(offsetof(baton_failure, errno) == 12, "baton_failure.errno");
_Static_assert(offsetof(baton_failure, message) == 20, "baton_failure.message");
_Static_assert(offsetof(baton_failure, attempt) == 28, "baton_failure.attempt");
_Static_assert(offsetof(baton_failure, retryable) == 32, "baton_failure.retryable");

/* Exported by BATON_ON_HANDOFF_FAILED(hook), where hook is: baton_decision hook(baton_failure, baton_bytes) */
#define BATON_ON_HANDOFF_FAILED(hook) \
    __attribute__((export_name("on_handoff_failed"))) \
    const void *baton_export_on_handoff_failed(uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t a4, uint32_t a5, uint32_t a6, uint32_t a7, uint32_t a8, uint32_t a9, uint32_t a10) \
    { \
        baton_failure p0; \
        p0.target.ptr = (const void *)(uintptr_t)a0; \
        p0.target.len = a1; \
        p0.stage = (baton_stage)a2; \
        p0.errno.is_some = (bool)a3; \
        p0.errno.value = (int32_t)a4; \
        p0.message.ptr = (const void *)(uintptr_t)a5; \
        p0.message.len = a6; \
        p0.attempt = (uint32_t)a7; \
        p0.retryable = (bool)a8; \
        baton_bytes p1; \
        p1.ptr = (const void *)(uintptr_t)a9; \
        p1.len = a10; \
        static baton_decision result; \
        result = hook(p0, p1); \
        return &result; \
    } \
    __attribute__((export_name("on_handoff_failed_post"))) \
    void baton_export_on_handoff_failed_post(const void *result) \
    { \
        (void)result; \
        baton_reset(); \
    }

/* === complete-hook === */

typedef struct {
    bool is_some;
    uint16_t value;
} baton_option_u16;
_Static_assert(sizeof(baton_option_u16) == 4, "baton_option_u16");
_Static_assert(offsetof(baton_option_u16, value) == 2, "baton_option_u16.value");

typedef struct {
    baton_string request_id;
    /* An outcome, by the access log's names. */
    baton_string action;
    baton_option_string target;
    baton_option_u16 status;
    uint64_t duration_us;
    uint64_t bytes_in;
    uint64_t bytes_out;
} baton_summary;
_Static_assert(sizeof(baton_summary) == 56, "baton_summary");
_Static_assert(offsetof(baton_summary, request_id) == 0, "baton_summary.request_id");
_Static_assert(offsetof(baton_summary, action) == 8, "baton_summary.action");
_Static_assert(offsetof(baton_summary, target) == 16, "baton_summary.target");
_Static_assert(offsetof(baton_summary, status) == 28, "baton_summary.status");
_Static_assert(offsetof(baton_summary, duration_us) == 32, "baton_summary.duration_us");
_Static_assert(offsetof(baton_summary, bytes_in) == 40, "baton_summary.bytes_in");
_Static_assert(offsetof(baton_summary, bytes_out) == 48, "baton_summary.bytes_out");

/* After the gateway let go of the request; its result cannot change.
 * Exported by BATON_ON_COMPLETE(hook), where hook is: void hook(baton_summary, baton_bytes) */
#define BATON_ON_COMPLETE(hook) \
    __attribute__((export_name("on_complete"))) \
    void baton_export_on_complete(uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t a4, uint32_t a5, uint32_t a6, uint32_t a7, uint32_t a8, uint64_t a9, uint64_t a10, uint64_t a11, uint32_t a12, uint32_t a13) \
    { \
        baton_summary p0; \
        p0.request_id.ptr = (const void *)(uintptr_t)a0; \
        p0.request_id.len = a1; \
        p0.action.ptr = (const void *)(uintptr_t)a2; \
        p0.action.len = a3; \
        p0.target.is_some = (bool)a4; \
        p0.target.value.ptr = (const void *)(uintptr_t)a5; \
        p0.target.value.len = a6; \
        p0.status.is_some = (bool)a7; \
        p0.status.value = (uint16_t)a8; \
        p0.duration_us = (uint64_t)a9; \
        p0.bytes_in = (uint64_t)a10; \
        p0.bytes_out = (uint64_t)a11; \
        baton_bytes p1; \
        p1.ptr = (const void *)(uintptr_t)a12; \
        p1.len = a13; \
        hook(p0, p1); \
        baton_reset(); \
    }

/* === lifecycle === */

typedef struct {
    /* 0 = fresh instance for every request. */
    uint32_t max_reuse;
    /* 0 = no ticks. */
    uint32_t tick_interval_ms;
    /* Targets and upstreams this policy wants to name. Can only narrow what the
     * gateway's configuration allows; an unknown name rejects the generation. */
    baton_list_string targets;
} baton_requirements;
_Static_assert(sizeof(baton_requirements) == 16, "baton_requirements");
_Static_assert(offsetof(baton_requirements, max_reuse) == 0, "baton_requirements.max_reuse");
_Static_assert(offsetof(baton_requirements, tick_interval_ms) == 4, "baton_requirements.tick_interval_ms");
_Static_assert(offsetof(baton_requirements, targets) == 8, "baton_requirements.targets");

typedef struct {
    bool is_err;
    union {
        baton_requirements ok;
        baton_list_string err;
    } of;
} baton_result_requirements_list_string;
_Static_assert(sizeof(baton_result_requirements_list_string) == 20, "baton_result_requirements_list_string");
_Static_assert(offsetof(baton_result_requirements_list_string, of) == 4, "baton_result_requirements_list_string.of");

/* Runs before traffic in a candidate generation. `err` rejects the
 * generation and keeps the running one. Its memory is the template of
 * every later instance.
 * Exported by BATON_CONFIGURE(hook), where hook is: baton_result_requirements_list_string hook(baton_string) */
#define BATON_CONFIGURE(hook) \
    __attribute__((export_name("configure"))) \
    const void *baton_export_configure(uint32_t a0, uint32_t a1) \
    { \
        baton_string p0; \
        p0.ptr = (const void *)(uintptr_t)a0; \
        p0.len = a1; \
        static baton_result_requirements_list_string result; \
        result = hook(p0); \
        return &result; \
    } \
    __attribute__((export_name("configure_post"))) \
    void baton_export_configure_post(const void *result) \
    { \
        (void)result; \
        baton_reset(); \
    }

/* Runs in the generation's own background instance.
 * Exported by BATON_ON_TICK(hook), where hook is: void hook(void) */
#define BATON_ON_TICK(hook) \
    __attribute__((export_name("on_tick"))) \
    void baton_export_on_tick(void) \
    { \
        hook(); \
        baton_reset(); \
    }

typedef struct {
    bool is_err;
    union {
        baton_string err;
    } of;
} baton_result_none_string;
_Static_assert(sizeof(baton_result_none_string) == 12, "baton_result_none_string");
_Static_assert(offsetof(baton_result_none_string, of) == 4, "baton_result_none_string.of");

/* Policy's own smoke test, called after `configure` in a throw-away
 * instance with `test` bindings; an `err` rejects the generation.
 * Exported by BATON_SELF_TEST(hook), where hook is: baton_result_none_string hook(void) */
#define BATON_SELF_TEST(hook) \
    __attribute__((export_name("self_test"))) \
    const void *baton_export_self_test(void) \
    { \
        static baton_result_none_string result; \
        result = hook(); \
        return &result; \
    } \
    __attribute__((export_name("self_test_post"))) \
    void baton_export_self_test_post(const void *result) \
    { \
        (void)result; \
        baton_reset(); \
    }

/* === log === */

enum {
    BATON_LEVEL_TRACE,
    BATON_LEVEL_DEBUG,
    BATON_LEVEL_INFO,
    BATON_LEVEL_WARN,
    BATON_LEVEL_ERROR,
};
typedef uint8_t baton_level;

__attribute__((import_module("baton:policy/log@0.1.0"), import_name("enabled")))
extern uint32_t baton_log_enabled_(uint32_t);
static inline bool baton_log_enabled(baton_level level)
{
    return (bool)baton_log_enabled_((uint32_t)level);
}

__attribute__((import_module("baton:policy/log@0.1.0"), import_name("write")))
extern void baton_log_write_(uint32_t, uint32_t, uint32_t, uint32_t, uint32_t);
static inline void baton_log_write(baton_level level, baton_string message, baton_list_tuple_string_string fields)
{
    baton_log_write_((uint32_t)level, (uint32_t)(uintptr_t)message.ptr, (uint32_t)message.len, (uint32_t)(uintptr_t)fields.ptr, (uint32_t)fields.len);
}

/* === metrics === */

__attribute__((import_module("baton:policy/metrics@0.1.0"), import_name("count")))
extern void baton_metrics_count_(uint32_t, uint32_t, uint32_t, uint32_t, uint64_t);
/* Created on first use; the host bounds the number of series per policy. */
static inline void baton_metrics_count(baton_string name, baton_list_tuple_string_string labels, uint64_t delta)
{
    baton_metrics_count_((uint32_t)(uintptr_t)name.ptr, (uint32_t)name.len, (uint32_t)(uintptr_t)labels.ptr, (uint32_t)labels.len, (uint64_t)delta);
}

__attribute__((import_module("baton:policy/metrics@0.1.0"), import_name("gauge")))
extern void baton_metrics_gauge_(uint32_t, uint32_t, uint32_t, uint32_t, double);
static inline void baton_metrics_gauge(baton_string name, baton_list_tuple_string_string labels, double value)
{
    baton_metrics_gauge_((uint32_t)(uintptr_t)name.ptr, (uint32_t)name.len, (uint32_t)(uintptr_t)labels.ptr, (uint32_t)labels.len, (double)value);
}

__attribute__((import_module("baton:policy/metrics@0.1.0"), import_name("observe")))
extern void baton_metrics_observe_(uint32_t, uint32_t, uint32_t, uint32_t, double);
static inline void baton_metrics_observe(baton_string name, baton_list_tuple_string_string labels, double value)
{
    baton_metrics_observe_((uint32_t)(uintptr_t)name.ptr, (uint32_t)name.len, (uint32_t)(uintptr_t)labels.ptr, (uint32_t)labels.len, (double)value);
}

/* === config === */

__attribute__((import_module("baton:policy/config@0.1.0"), import_name("get")))
extern void baton_config_get_(uint32_t, uint32_t, void *);
static inline baton_option_string baton_config_get(baton_string key)
{
    baton_option_string result;
    baton_config_get_((uint32_t)(uintptr_t)key.ptr, (uint32_t)key.len, &result);
    return result;
}

__attribute__((import_module("baton:policy/config@0.1.0"), import_name("secret")))
extern void baton_config_secret_(uint32_t, uint32_t, void *);
/* Never logged, never part of a snapshot: refused during `configure`. */
static inline baton_option_string baton_config_secret(baton_string name)
{
    baton_option_string result;
    baton_config_secret_((uint32_t)(uintptr_t)name.ptr, (uint32_t)name.len, &result);
    return result;
}

/* === clock ===
 *
 * Also for modules that are built without WASI. Reading it has no effect, so
 * a hook that trapped may be tried once more behind it.
 */

__attribute__((import_module("baton:policy/clock@0.1.0"), import_name("wall-ms")))
extern uint64_t baton_clock_wall_ms_(void);
/* Milliseconds since 1970 (UTC); can be set, forwards and backwards. */
static inline uint64_t baton_clock_wall_ms(void)
{
    return (uint64_t)baton_clock_wall_ms_();
}

__attribute__((import_module("baton:policy/clock@0.1.0"), import_name("monotonic-us")))
extern uint64_t baton_clock_monotonic_us_(void);
/* Microseconds of a clock that is never set; its zero means nothing. */
static inline uint64_t baton_clock_monotonic_us(void)
{
    return (uint64_t)baton_clock_monotonic_us_();
}

/* === random === */

__attribute__((import_module("baton:policy/random@0.1.0"), import_name("bytes")))
extern void baton_random_bytes_(uint32_t, void *);
/* Unpredictable bytes of the operating system, at most 64 KiB in one call.
 * What `configure` draws is the same in every instance. */
static inline baton_bytes baton_random_bytes(uint32_t count)
{
    baton_bytes result;
    baton_random_bytes_((uint32_t)count, &result);
    return result;
}

/* === store ===
 *
 * Node-local memory, shared by all instances and generations of one policy.
 */

enum {
    BATON_STORE_ERROR_FULL,
    BATON_STORE_ERROR_TOO_LARGE,
    BATON_STORE_ERROR_CONFLICT,
};
typedef uint8_t baton_store_error;

typedef struct {
    baton_bytes value;
    uint64_t version;
} baton_entry;
_Static_assert(sizeof(baton_entry) == 16, "baton_entry");
_Static_assert(offsetof(baton_entry, value) == 0, "baton_entry.value");
_Static_assert(offsetof(baton_entry, version) == 8, "baton_entry.version");

typedef struct {
    bool is_some;
    baton_entry value;
} baton_option_entry;
_Static_assert(sizeof(baton_option_entry) == 24, "baton_option_entry");
_Static_assert(offsetof(baton_option_entry, value) == 8, "baton_option_entry.value");

__attribute__((import_module("baton:policy/store@0.1.0"), import_name("get")))
extern void baton_store_get_(uint32_t, uint32_t, void *);
static inline baton_option_entry baton_store_get(baton_string key)
{
    baton_option_entry result;
    baton_store_get_((uint32_t)(uintptr_t)key.ptr, (uint32_t)key.len, &result);
    return result;
}

typedef struct {
    bool is_err;
    union {
        uint64_t ok;
        baton_store_error err;
    } of;
} baton_result_u64_store_error;
_Static_assert(sizeof(baton_result_u64_store_error) == 16, "baton_result_u64_store_error");
_Static_assert(offsetof(baton_result_u64_store_error, of) == 8, "baton_result_u64_store_error.of");

__attribute__((import_module("baton:policy/store@0.1.0"), import_name("set")))
extern void baton_store_set_(uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint64_t, void *);
static inline baton_result_u64_store_error baton_store_set(baton_string key, baton_bytes value, baton_option_u64 ttl_ms)
{
    baton_result_u64_store_error result;
    baton_store_set_((uint32_t)(uintptr_t)key.ptr, (uint32_t)key.len, (uint32_t)(uintptr_t)value.ptr, (uint32_t)value.len, (uint32_t)ttl_ms.is_some, (uint64_t)ttl_ms.value, &result);
    return result;
}

__attribute__((import_module("baton:policy/store@0.1.0"), import_name("compare-and-set")))
extern void baton_store_compare_and_set_(uint32_t, uint32_t, uint64_t, uint32_t, uint32_t, uint32_t, uint64_t, void *);
static inline baton_result_u64_store_error baton_store_compare_and_set(baton_string key, uint64_t version, baton_bytes value, baton_option_u64 ttl_ms)
{
    baton_result_u64_store_error result;
    baton_store_compare_and_set_((uint32_t)(uintptr_t)key.ptr, (uint32_t)key.len, (uint64_t)version, (uint32_t)(uintptr_t)value.ptr, (uint32_t)value.len, (uint32_t)ttl_ms.is_some, (uint64_t)ttl_ms.value, &result);
    return result;
}

__attribute__((import_module("baton:policy/store@0.1.0"), import_name("delete")))
extern void baton_store_delete_(uint32_t, uint32_t);
static inline void baton_store_delete(baton_string key)
{
    baton_store_delete_((uint32_t)(uintptr_t)key.ptr, (uint32_t)key.len);
}

typedef struct {
    bool is_err;
    union {
        int64_t ok;
        baton_store_error err;
    } of;
} baton_result_s64_store_error;
_Static_assert(sizeof(baton_result_s64_store_error) == 16, "baton_result_s64_store_error");
_Static_assert(offsetof(baton_result_s64_store_error, of) == 8, "baton_result_s64_store_error.of");

__attribute__((import_module("baton:policy/store@0.1.0"), import_name("increment")))
extern void baton_store_increment_(uint32_t, uint32_t, uint64_t, uint32_t, uint64_t, void *);
/* Atomic; starts at 0; returns the new number. */
static inline baton_result_s64_store_error baton_store_increment(baton_string key, int64_t delta, baton_option_u64 ttl_ms)
{
    baton_result_s64_store_error result;
    baton_store_increment_((uint32_t)(uintptr_t)key.ptr, (uint32_t)key.len, (uint64_t)delta, (uint32_t)ttl_ms.is_some, (uint64_t)ttl_ms.value, &result);
    return result;
}

__attribute__((import_module("baton:policy/store@0.1.0"), import_name("take")))
extern uint32_t baton_store_take_(uint32_t, uint32_t, double, double, double);
/* Token bucket: true when `cost` tokens were taken. */
static inline bool baton_store_take(baton_string key, double rate_per_s, double burst, double cost)
{
    return (bool)baton_store_take_((uint32_t)(uintptr_t)key.ptr, (uint32_t)key.len, (double)rate_per_s, (double)burst, (double)cost);
}

/* === targets === */

enum {
    BATON_HEALTH_UP,
    BATON_HEALTH_DRAINING,
    BATON_HEALTH_DOWN,
    BATON_HEALTH_UNKNOWN,
};
typedef uint8_t baton_health;

typedef struct {
    bool is_some;
    double value;
} baton_option_f64;
_Static_assert(sizeof(baton_option_f64) == 16, "baton_option_f64");
_Static_assert(offsetof(baton_option_f64, value) == 8, "baton_option_f64.value");

typedef struct {
    baton_string name;
    baton_health health;
    /* Connections handed off and not yet reported finished. */
    uint32_t in_flight;
    /* Reported by the target itself, 0..1. */
    baton_option_f64 load;
    baton_option_string last_error;
} baton_target_status;
_Static_assert(sizeof(baton_target_status) == 48, "baton_target_status");
_Static_assert(offsetof(baton_target_status, name) == 0, "baton_target_status.name");
_Static_assert(offsetof(baton_target_status, health) == 8, "baton_target_status.health");
_Static_assert(offsetof(baton_target_status, in_flight) == 12, "baton_target_status.in_flight");
_Static_assert(offsetof(baton_target_status, load) == 16, "baton_target_status.load");
_Static_assert(offsetof(baton_target_status, last_error) == 32, "baton_target_status.last_error");

enum {
    BATON_STRATEGY_ROUND_ROBIN,
    BATON_STRATEGY_LEAST_IN_FLIGHT,
    BATON_STRATEGY_LEAST_LOAD,
    BATON_STRATEGY_HASH,
    BATON_STRATEGY_RANDOM_TWO,
};
typedef uint8_t baton_strategy;

typedef struct {
    bool is_some;
    baton_target_status value;
} baton_option_target_status;
_Static_assert(sizeof(baton_option_target_status) == 56, "baton_option_target_status");
_Static_assert(offsetof(baton_option_target_status, value) == 8, "baton_option_target_status.value");

__attribute__((import_module("baton:policy/targets@0.1.0"), import_name("status")))
extern void baton_targets_status_(uint32_t, uint32_t, void *);
static inline baton_option_target_status baton_targets_status(baton_string name)
{
    baton_option_target_status result;
    baton_targets_status_((uint32_t)(uintptr_t)name.ptr, (uint32_t)name.len, &result);
    return result;
}

typedef struct {
    const baton_target_status *ptr;
    uint32_t len;
} baton_list_target_status;
_Static_assert(sizeof(baton_list_target_status) == 8, "baton_list_target_status");

__attribute__((import_module("baton:policy/targets@0.1.0"), import_name("members")))
extern void baton_targets_members_(uint32_t, uint32_t, void *);
static inline baton_list_target_status baton_targets_members(baton_string group)
{
    baton_list_target_status result;
    baton_targets_members_((uint32_t)(uintptr_t)group.ptr, (uint32_t)group.len, &result);
    return result;
}

__attribute__((import_module("baton:policy/targets@0.1.0"), import_name("pick")))
extern void baton_targets_pick_(uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, void *);
/* Native choice among healthy members; `key` feeds `hash`. */
static inline baton_option_string baton_targets_pick(baton_string group, baton_strategy strategy, baton_option_string key)
{
    baton_option_string result;
    baton_targets_pick_((uint32_t)(uintptr_t)group.ptr, (uint32_t)group.len, (uint32_t)strategy, (uint32_t)key.is_some, (uint32_t)(uintptr_t)key.value.ptr, (uint32_t)key.value.len, &result);
    return result;
}

__attribute__((import_module("baton:policy/targets@0.1.0"), import_name("revoke")))
extern uint32_t baton_targets_revoke_(uint32_t, uint32_t, uint32_t, uint32_t);
/* Asks the daemon that has the client of request `id` to end it, in its own
 * time. True when it was asked: the request was handed over by this policy,
 * and its daemon speaks the native dialect. */
static inline bool baton_targets_revoke(baton_string id, baton_string reason)
{
    return (bool)baton_targets_revoke_((uint32_t)(uintptr_t)id.ptr, (uint32_t)id.len, (uint32_t)(uintptr_t)reason.ptr, (uint32_t)reason.len);
}

/* === callout === */

typedef struct {
    /* Upstream named in the configuration, not a free URL. */
    baton_string upstream;
    baton_string method;
    baton_string path_and_query;
    baton_list_field headers;
    baton_bytes body;
    uint32_t timeout_ms;
} baton_call;
_Static_assert(sizeof(baton_call) == 44, "baton_call");
_Static_assert(offsetof(baton_call, upstream) == 0, "baton_call.upstream");
_Static_assert(offsetof(baton_call, method) == 8, "baton_call.method");
_Static_assert(offsetof(baton_call, path_and_query) == 16, "baton_call.path_and_query");
_Static_assert(offsetof(baton_call, headers) == 24, "baton_call.headers");
_Static_assert(offsetof(baton_call, body) == 32, "baton_call.body");
_Static_assert(offsetof(baton_call, timeout_ms) == 40, "baton_call.timeout_ms");

typedef struct {
    uint16_t status;
    baton_list_field headers;
    baton_bytes body;
} baton_answer;
_Static_assert(sizeof(baton_answer) == 20, "baton_answer");
_Static_assert(offsetof(baton_answer, status) == 0, "baton_answer.status");
_Static_assert(offsetof(baton_answer, headers) == 4, "baton_answer.headers");
_Static_assert(offsetof(baton_answer, body) == 12, "baton_answer.body");

enum {
    BATON_CALL_ERROR_NOT_ALLOWED,
    BATON_CALL_ERROR_TIMED_OUT,
    BATON_CALL_ERROR_UNREACHABLE,
    BATON_CALL_ERROR_TOO_LARGE,
    BATON_CALL_ERROR_BUDGET,
};
typedef struct {
    uint8_t tag;
    union {
        baton_string unreachable;
    } of;
} baton_call_error;
_Static_assert(sizeof(baton_call_error) == 12, "baton_call_error");
_Static_assert(offsetof(baton_call_error, of) == 4, "baton_call_error.of");

typedef struct {
    bool is_err;
    union {
        baton_answer ok;
        baton_call_error err;
    } of;
} baton_result_answer_call_error;
_Static_assert(sizeof(baton_result_answer_call_error) == 24, "baton_result_answer_call_error");
_Static_assert(offsetof(baton_result_answer_call_error, of) == 4, "baton_result_answer_call_error.of");

__attribute__((import_module("baton:policy/callout@0.1.0"), import_name("fetch")))
extern void baton_callout_fetch_(uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, void *);
/* Suspends only this instance. Buffered; limited in size and number. */
static inline baton_result_answer_call_error baton_callout_fetch(baton_call call)
{
    baton_result_answer_call_error result;
    baton_callout_fetch_((uint32_t)(uintptr_t)call.upstream.ptr, (uint32_t)call.upstream.len, (uint32_t)(uintptr_t)call.method.ptr, (uint32_t)call.method.len, (uint32_t)(uintptr_t)call.path_and_query.ptr, (uint32_t)call.path_and_query.len, (uint32_t)(uintptr_t)call.headers.ptr, (uint32_t)call.headers.len, (uint32_t)(uintptr_t)call.body.ptr, (uint32_t)call.body.len, (uint32_t)call.timeout_ms, &result);
    return result;
}

/* === Strings === */

static inline baton_bytes baton_bytes_of(baton_string text)
{
    return (baton_bytes){(const uint8_t *)text.ptr, text.len};
}

static inline baton_string baton_string_of(baton_bytes bytes)
{
    return (baton_string){(const char *)bytes.ptr, bytes.len};
}

static inline bool baton_equal(baton_string a, baton_string b)
{
    if (a.len != b.len) return false;
    for (uint32_t i = 0; i < a.len; i++)
        if (a.ptr[i] != b.ptr[i]) return false;
    return true;
}

static inline bool baton_starts_with(baton_string text, baton_string start)
{
    return text.len >= start.len && baton_equal((baton_string){text.ptr, start.len}, start);
}

/* The same, where `start` is in lower case and the text's case does not matter. */
static inline bool baton_starts_with_any_case(baton_string text, baton_string start)
{
    if (text.len < start.len) return false;
    for (uint32_t i = 0; i < start.len; i++) {
        char c = text.ptr[i];
        if (c >= 'A' && c <= 'Z') c = (char)(c | 0x20);
        if (c != start.ptr[i]) return false;
    }
    return true;
}

/* From byte `start` on; `start` is at most its length. */
static inline baton_string baton_from(baton_string text, uint32_t start)
{
    return (baton_string){text.ptr + start, text.len - start};
}

/* Text under construction; begins as {0}. */
typedef struct {
    char *ptr;
    uint32_t len;
    uint32_t room;
} baton_text;

static inline void baton_add_char(baton_text *text, char c)
{
    if (text->len == text->room) {
        uint32_t room = text->room ? text->room * 2 : 128;
        char *ptr = baton_alloc(room, 1);
        if (text->len) __builtin_memcpy(ptr, text->ptr, text->len);
        text->ptr = ptr;
        text->room = room;
    }
    text->ptr[text->len++] = c;
}

static inline void baton_add(baton_text *text, baton_string more)
{
    for (uint32_t i = 0; i < more.len; i++) baton_add_char(text, more.ptr[i]);
}

static inline void baton_add_number(baton_text *text, uint64_t number)
{
    char digits[20];
    uint32_t count = 0;
    do digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    while (count) baton_add_char(text, digits[--count]);
}

/* A JSON string, its quotes included (RFC 8259 7). */
static inline void baton_add_json(baton_text *text, baton_string value)
{
    baton_add_char(text, '"');
    for (uint32_t i = 0; i < value.len; i++) {
        unsigned char c = (unsigned char)value.ptr[i];
        /* What has a letter of its own, by its number; 0 for the others. */
        char letter = "\0\0\0\0\0\0\0\0btn\0fr"[c < 14 ? c : 0];
        if (c == '"' || c == '\\') letter = (char)c;
        if (letter) {
            baton_add_char(text, '\\');
            baton_add_char(text, letter);
        } else if (c < 0x20) {
            baton_add(text, BATON_STR("\\u00"));
            baton_add_char(text, (char)('0' + (c >> 4)));
            baton_add_char(text, "0123456789abcdef"[c & 15]);
        } else {
            baton_add_char(text, (char)c);
        }
    }
    baton_add_char(text, '"');
}

static inline baton_string baton_text_string(const baton_text *text)
{
    return (baton_string){text->ptr, text->len};
}

static inline baton_bytes baton_text_bytes(const baton_text *text)
{
    return (baton_bytes){(const uint8_t *)text->ptr, text->len};
}

/* === Lists === */

/* Room for one more behind the items that are there, which may be constant: they are copied. */
#define BATON_GROWN(list, type) ((type *)baton_grown((list).ptr, (list).len++, sizeof(type), _Alignof(type)))

static inline void *baton_grown(const void *items, uint32_t count, uint32_t size, uint32_t align)
{
    char *grown = baton_alloc((count + 1) * size, align);
    if (count) __builtin_memcpy(grown, items, count * size);
    return grown;
}

/* === Decisions === */

/* No opinion: the next policy decides, then the route's default. */
static inline baton_decision baton_decide_pass(void)
{
    return (baton_decision){.action = {.tag = BATON_ACTION_PASS}};
}

/* The client goes to a target; the data arrives with its socket. */
static inline baton_decision baton_decide_handoff(baton_string target, baton_bytes data)
{
    baton_handoff handoff = {.target = target, .data = data, .relay = BATON_RELAY_MODE_IF_NEEDED};
    return (baton_decision){.action = {.tag = BATON_ACTION_HANDOFF, .of.handoff = handoff}};
}

/* The client is answered here. */
static inline baton_decision baton_decide_respond(uint16_t status, baton_bytes body)
{
    return (baton_decision){.action = {.tag = BATON_ACTION_RESPOND, .of.respond = {.status = status, .body = body}}};
}

/* The connection is closed without an answer. */
static inline baton_decision baton_decide_abort(void)
{
    return (baton_decision){.action = {.tag = BATON_ACTION_ABORT}};
}

/* Adds a field to an answer; its name is in lower case. */
static inline void baton_add_header(baton_decision *decision, baton_string name, baton_bytes value)
{
    baton_list_field *headers = &decision->action.of.respond.headers;
    uint32_t at = headers->len;
    baton_field *fields = BATON_GROWN(*headers, baton_field);
    fields[at] = (baton_field){name, value};
    headers->ptr = fields;
}

/* Adds to the access log; the last value of a key wins. */
static inline void baton_annotate(baton_decision *decision, baton_string key, baton_string value)
{
    baton_list_tuple_string_string *annotations = &decision->annotations;
    uint32_t at = annotations->len;
    baton_tuple_string_string *pairs = BATON_GROWN(*annotations, baton_tuple_string_string);
    pairs[at] = (baton_tuple_string_string){key, value};
    annotations->ptr = pairs;
}

/* === Memory === */

#ifdef BATON_IMPLEMENTATION

/* Never called: `baton policy inspect` reads the name, which is there in a stripped module too. */
__attribute__((export_name("baton_language_C"))) void baton_language_c(void) {}

/* The linker's: where data and stack end. */
extern unsigned char __heap_base;

static uintptr_t baton_kept, baton_used;

void *baton_alloc(uint32_t size, uint32_t align)
{
    if (!baton_kept) baton_kept = baton_used = (uintptr_t)&__heap_base;
    uintptr_t at = (baton_used + align - 1) & ~(uintptr_t)(align - 1);
    uintptr_t room = __builtin_wasm_memory_size(0) * 65536;
    if (size > UINT32_MAX - 65535 - at) __builtin_trap();
    if (at + size > room) {
        /* Half as much again, so that a slow growth is few requests. */
        uintptr_t wanted = (at + size - room + 65535) / 65536, ample = wanted + room / 65536 / 2;
        if (__builtin_wasm_memory_grow(0, ample) == SIZE_MAX && __builtin_wasm_memory_grow(0, wanted) == SIZE_MAX)
            __builtin_trap();
    }
    baton_used = at + size;
    return (void *)at;
}

void baton_keep(void)
{
    baton_kept = baton_used;
}

void baton_reset(void)
{
    baton_used = baton_kept;
}

/* Where the gateway puts what it gives. */
__attribute__((export_name("cabi_realloc")))
void *baton_realloc(void *old, uint32_t old_size, uint32_t align, uint32_t size)
{
    void *at = baton_alloc(size, align);
    if (old_size) __builtin_memcpy(at, old, old_size < size ? old_size : size);
    return at;
}

#endif /* BATON_IMPLEMENTATION */

#endif /* BATON_H */
