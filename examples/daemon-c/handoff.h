/* The daemon's side of Baton, in one file: clients that a gateway hands over, one by one.
 *
 *     #define _GNU_SOURCE
 *     #define HANDOFF_IMPLEMENTATION            // in exactly one .c file
 *     #include "handoff.h"
 *
 *     int main(void) {
 *         struct handoff_acceptor *acceptor = handoff_listen("/run/hello.sock", NULL);
 *         struct handoff *client;
 *         while (acceptor && (client = handoff_accept(acceptor))) {
 *             handoff_respond(client, 200, NULL, "hello\n", 6, 1);
 *             handoff_give_back(client, 200);
 *         }
 *     }
 *
 * C11, Linux, nothing but libc: cc -std=gnu11 -pthread. `handoff_serve` does the same with a thread per client.
 *
 * Who owns a client. What `handoff_accept` returns is lent: the gateway has a copy and may still take the client elsewhere.
 * The first read or write, and `handoff_take`, say TAKEN; from then on the client is this process's alone. Until then it may
 * be refused, and another daemon gets it or the gateway answers. Each handoff ends in exactly one of `handoff_finish`,
 * `handoff_give_back`, `handoff_refuse` and `handoff_drop`, which free it.
 *
 * The request's head was read by the gateway. Its body is unread in the socket, but for what came along; `handoff_read` knows
 * where everything is. Clients arrive non-blocking, and the functions here wait by themselves.
 *
 * The protocol, `baton/1`: SOCK_SEQPACKET, a channel that stays. A packet (128 KiB at most) has one or more frames of a
 * header of 16 bytes and a payload; its descriptors belong to its frames in order. Integers are little-endian.
 *
 *     0  u8 magic 0xB7    1  u8 version 1    2  u8 type    3  u8 flags    4  u32 payload length    8  u64 handoff id
 *
 *      1 HELLO     both      JSON {"versions":[1],"name","pid","in_flight_max","data_bytes_max","roles"}
 *      2 HANDOFF   gateway   sections: JSON metadata, data, preread; flags: body 1, data 2, preread 4 are in memfds, which
 *                            come in this order behind the client's descriptor
 *      3 TAKEN     daemon    the client is mine
 *      4 REFUSED   daemon    JSON {"reason","retry_after_s","message"}: my copy is closed, and I have written nothing
 *      5 DONE      daemon    JSON {"status","bytes_out","duration_us","result","message"}
 *      6 RETURN    daemon    sections: as DONE, then bytes that were read and not used; the client's descriptor
 *      7 LOAD      daemon    JSON {"in_flight","load"}
 *      8 DRAINING  daemon    no new clients
 *      9 REVOKE    gateway   JSON {"reason"}: please end this one
 *     10 PING  11 PONG  both
 *
 * In the other dialects a socket carries one client, and reading the message is the acknowledgement; there is no metadata,
 * TAKEN, RETURN or REVOKE: `seqpacket` and `stream` carry the data beside the client, `datagram` the request's head, `fdpass`
 * one zero byte, the gateway having written the response's head.
 *
 * Threads. A thread of the acceptor serves the channels, so that PING, REVOKE and refusals do not wait for whoever serves a
 * client. Any number of threads may accept; one handoff belongs to one thread at a time. Do not fork to serve a client: the
 * channel is not shared with children. */
#ifndef HANDOFF_H
#define HANDOFF_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum handoff_dialect { HANDOFF_BATON, HANDOFF_SEQPACKET, HANDOFF_STREAM, HANDOFF_FDPASS, HANDOFF_DATAGRAM };
enum handoff_reason { HANDOFF_OVERLOADED, HANDOFF_WHILE_DRAINING, HANDOFF_UNSUPPORTED, HANDOFF_DENIED };
enum handoff_result { HANDOFF_OK, HANDOFF_CLIENT_GONE, HANDOFF_ERROR, HANDOFF_TIMEOUT, HANDOFF_REVOKED };

struct handoff;          /* a client, and what was said of it */
struct handoff_acceptor; /* a socket that clients are handed over on */

/* A header field. Lists end with {NULL, NULL}. */
struct handoff_field { const char *name, *value; };

/* Zero, in each member, is the default. */
struct handoff_options {
    enum handoff_dialect dialect;
    /* Who may hand over, by SO_PEERCRED: one of these users or of these groups. With neither list, the numbers in the
     * environment variable BATON_GATEWAY_UIDS, separated by commas; without that, this process's own user and root. */
    const uid_t *allow_uids;
    size_t allow_uids_count;
    const gid_t *allow_gids;
    size_t allow_gids_count;
    unsigned in_flight_max; /* clients at a time: more are refused, or wait in the backlog in the other dialects; 100 */
    size_t data_bytes_max;  /* of one handoff; 1 MiB */
    int write_timeout_ms;   /* without a byte taken by the client; 30,000 */
    int body_timeout_ms;    /* without a byte sent by the client; 30,000 */
    const char *name;       /* for people; "daemon" */
    const char *const *roles; /* for people; ends with NULL */
    mode_t socket_mode;       /* of the socket's file; 0660 */
    void (*report)(const char *what); /* told of every peer that was dropped, on the acceptor's thread; nobody */
};

/* "baton", "seqpacket", "stream", "fdpass", "datagram": the dialect, or -1. */
int handoff_dialect_named(const char *name);
/* The reason's word, "overloaded", "draining", "unsupported", "denied": the reason, or -1. */
int handoff_reason_named(const char *name);

/* Listens at `path`, of any length. A socket file that nobody listens on any more is replaced, a live one is not: EADDRINUSE.
 * EINVAL when a list of users cannot be read: then nobody may hand over. `options` may be NULL. NULL on failure, with errno;
 * `handoff_problem` says more. */
struct handoff_acceptor *handoff_listen(const char *path, const struct handoff_options *options);
/* Takes what this process was started with: the listening socket of a service manager (LISTEN_FDS), one that is standard
 * input, or else one client only: standard input is its socket (inetd, `Accept=yes`), or GATEWAY_INTERFACE is set (CGI).
 * Then `handoff_accept` gives that one and ends. NULL with ENOTSOCK when it is none of these. */
struct handoff_acceptor *handoff_inherit(const struct handoff_options *options);
/* What the last failed call of these two, in this thread, met. */
const char *handoff_problem(void);

/* Waits for the next client. NULL once stopped. */
struct handoff *handoff_accept(struct handoff_acceptor *);
/* Accepts until stopped, and calls `serve` for each client on a thread of its own (256 KiB of stack). `serve` ends the handoff.
 * A client for whom there is no thread is refused. */
void handoff_serve(struct handoff_acceptor *, void (*serve)(struct handoff *, void *), void *context);
/* Says DRAINING, refuses who waits, and ends `handoff_accept`. May be called from a signal handler and any thread. */
void handoff_stop(struct handoff_acceptor *);
/* After stop: waits for those in flight, at most so long. Returns how many are left. */
unsigned handoff_drain(struct handoff_acceptor *, int timeout_ms);
/* Says how busy this daemon is, 0 to 1, to every gateway. */
void handoff_load(struct handoff_acceptor *, double load);
/* Stops, and closes everything but the clients that were taken. The file is removed if it still is this acceptor's. */
void handoff_close(struct handoff_acceptor *);

/* What is known of a client; it lives as long as the handoff. "" and 0 where it is not known. */
const char *handoff_id(const struct handoff *);
const char *handoff_data(const struct handoff *, size_t *length); /* a NUL byte stands behind it */
const char *handoff_metadata(const struct handoff *);             /* JSON, "{}" where there is none */
/* A text or number in the metadata, by the names that lead to it and NULL at the end:
 * handoff_metadata_text(client, "request", "authority", NULL). NULL when it is not there. */
const char *handoff_metadata_text(struct handoff *, ...);
const char *handoff_role(const struct handoff *);   /* the policy's word: "role" in its own metadata */
const char *handoff_method(const struct handoff *);
const char *handoff_target(const struct handoff *); /* path and query, as the client wrote them */
const struct handoff_field *handoff_headers(const struct handoff *); /* names in lower case, in order, with repeats */
const char *handoff_header(const struct handoff *, const char *name); /* the first of that name, or NULL */
const char *handoff_head(const struct handoff *, size_t *length); /* its bytes, where a policy sent them along */
int handoff_head_sent(const struct handoff *); /* the gateway wrote the response's head: only the body is written here */
/* CGI variables as "NAME=value", NULL at the end: for execve(2). One block of memory, free(3) it. NULL with errno. */
char **handoff_env(const struct handoff *);

/* Says TAKEN. -1 with ENOTCONN when the gateway has gone: then the client is not ours, and nothing will be written. */
int handoff_take(struct handoff *);
/* Not this client; only before it was taken. Another daemon gets it, or in the other dialects it is answered here: 503, 403
 * when denied, 501 when unsupported. `retry_after_s` 0: nothing is said of it. `message`, for people, may be NULL. */
void handoff_refuse(struct handoff *, enum handoff_reason, unsigned retry_after_s, const char *message);

/* Reads some of the request's body, decoded; 0 at its end. -1 with ETIMEDOUT, ECONNRESET (the client left within it), EBADMSG
 * (no chunks), ECANCELED (revoked), ENOTCONN (could not be taken). A client that waits for 100 Continue is told. */
ssize_t handoff_read(struct handoff *, void *buffer, size_t length);
/* Writes all of it. -1 with EPIPE or ECONNRESET (the client has left), ETIMEDOUT, ECANCELED (revoked), ENOTCONN (could not be
 * taken); after one of them there is nothing left but to finish. Never a SIGPIPE. */
int handoff_write(struct handoff *, const void *bytes, size_t length);
/* Writes a whole response with its Content-Length; `headers` may be NULL. `keep_alive`: it will be given back. -1 as for write,
 * or EINVAL for what no header may hold or is added here (Content-Length, Connection, Transfer-Encoding). */
int handoff_respond(struct handoff *, int status, const struct handoff_field *headers, const void *body, size_t length,
                    int keep_alive);
/* Writes a head, with Connection: close unless `headers` has a Connection. The body is what is written until the end. */
int handoff_start(struct handoff *, int status, const struct handoff_field *headers);
/* The client's socket, taken; -1. It stays the handoff's. Bytes that were read before are not in it (handoff_read). */
int handoff_socket(struct handoff *);
/* Whether the client has left, without writing. One that only ended its sending side looks the same; one with bytes unread,
 * or that was not taken, has not left. */
int handoff_client_gone(struct handoff *);
/* Whether the gateway asked to end this one. */
int handoff_revoked(const struct handoff *);
/* Waits until the client has left or is revoked: 1; 0 when the time is up. For whoever has nothing to write. */
int handoff_wait(struct handoff *, int timeout_ms);

/* Ends the client so that the last bytes arrive, closes it and says DONE. `status` 0: that of respond or start. A write that
 * has failed makes HANDOFF_OK what it failed with; one that timed out is reset, so that no half looks whole. */
void handoff_finish(struct handoff *, int status, enum handoff_result, const char *message);
/* Gives the client back for its next request. Where that cannot be (another dialect, the gateway gone, a body that goes on for
 * more than 64 KiB, a response that says close), the same as finish. */
void handoff_give_back(struct handoff *, int status);
/* Whoever does not finish: not taken, it is refused as overloaded; taken, it is closed and DONE says error. */
void handoff_drop(struct handoff *);

/* A JSON string, quoted; what is no UTF-8 becomes U+FFFD. free(3) it. NULL without memory. */
char *handoff_json_quote(const char *text, size_t length);

#endif

#if defined(HANDOFF_IMPLEMENTATION) && !defined(HANDOFF_IMPLEMENTED)
#define HANDOFF_IMPLEMENTED
#ifndef _GNU_SOURCE
#error "handoff.h: define _GNU_SOURCE before the first #include of the file with HANDOFF_IMPLEMENTATION, or use -D_GNU_SOURCE"
#endif

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    HANDOFF_HEADER_BYTES = 16,
    HANDOFF_PACKET_BYTES_MAX = 128 << 10,
    HANDOFF_DESCRIPTORS_MAX = 253,      /* SCM_MAX_FD: in a smaller buffer, strays would leak */
    HANDOFF_INCOMING_MAX = 64,          /* peers whose message is not whole; more wait in the backlog */
    HANDOFF_RECEIVE_TIMEOUT_MS = 5000,  /* for a message to be whole, and for the first HELLO */
    HANDOFF_EXHAUSTED_PAUSE_MS = 20,    /* without descriptors: far less than a gateway waits */
    HANDOFF_LINGER_MS = 2000,           /* for what is unread when a client is closed */
    HANDOFF_CLOSING_MS = 250,           /* for gateways to close a channel that was drained */
    HANDOFF_UNREAD_BYTES_MAX = 64 << 10, /* of a body that nobody wanted, before its client is given back */
    HANDOFF_LINE_BYTES_MAX = 16 << 10,  /* a chunk's size line with its extensions */
    HANDOFF_TRAILER_BYTES_MAX = 16 << 10,
    HANDOFF_JSON_DEPTH_MAX = 128,
    HANDOFF_TEXT_BYTES_MAX = 1024,      /* of what is said for people */
    HANDOFF_DATA_VARIABLE_MAX = (128 << 10) - (int)sizeof "HANDOFF_DATA=", /* execve(2): 128 KiB with name and NUL */
};
enum { HO_HELLO = 1, HO_HANDOFF, HO_TAKEN, HO_REFUSED, HO_DONE, HO_RETURN, HO_LOAD, HO_DRAINING, HO_REVOKE, HO_PING, HO_PONG };
enum ho_framing { HO_NONE, HO_LENGTH, HO_CHUNKED, HO_MEMFD };

static const char *const ho_dialects[] = {"baton", "seqpacket", "stream", "fdpass", "datagram"};
static const char *const ho_reasons[] = {"overloaded", "draining", "unsupported", "denied"};
static const char *const ho_results[] = {"ok", "client-gone", "error", "timeout", "revoked"};

static _Thread_local char ho_problem[256];

__attribute__((format(printf, 2, 3))) static void *ho_fail(int error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(ho_problem, sizeof ho_problem, format, arguments);
    va_end(arguments);
    errno = error;
    return NULL;
}

const char *handoff_problem(void) { return ho_problem; }

static int ho_word(const char *const *words, size_t count, const char *word) {
    for (size_t i = 0; i < count; i++)
        if (word && !strcmp(words[i], word)) return (int)i;
    return -1;
}

int handoff_dialect_named(const char *name) { return ho_word(ho_dialects, 5, name); }
int handoff_reason_named(const char *name) { return ho_word(ho_reasons, 4, name); }

static long long ho_now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static long long ho_now_ms(void) { return ho_now_us() / 1000; }

/* --- bytes that grow ------------------------------------------------------------------------------------------------- */

struct ho_bytes { char *at; size_t length, room; bool failed; };

static void ho_add(struct ho_bytes *to, const void *bytes, size_t length) {
    if (to->failed) return;
    if (to->room - to->length <= length) { /* One byte more, for a NUL. */
        size_t room = (to->length + length + 1) * 2;
        char *at = realloc(to->at, room);
        if (!at) { to->failed = true; return; }
        to->at = at;
        to->room = room;
    }
    if (length) memcpy(to->at + to->length, bytes, length);
    to->length += length;
    to->at[to->length] = 0;
}

static void ho_text(struct ho_bytes *to, const char *text) { ho_add(to, text, strlen(text)); }

static void ho_number(struct ho_bytes *to, unsigned long long number) {
    char digits[24];
    ho_add(to, digits, (size_t)snprintf(digits, sizeof digits, "%llu", number));
}

/* --- JSON: as RFC 8259 has it, with a bound on depth; strings are decoded where they stand ------------------------------ */

/* The length of the UTF-8 sequence at the beginning, 0 if it is none. */
static size_t ho_utf8(const unsigned char *at, size_t left) {
    size_t count = at[0] < 0x80 ? 1 : at[0] < 0xC2 ? 0 : at[0] < 0xE0 ? 2 : at[0] < 0xF0 ? 3 : at[0] < 0xF5 ? 4 : 0;
    if (count == 0 || count > left) return 0;
    for (size_t i = 1; i < count; i++)
        if ((at[i] & 0xC0) != 0x80) return 0;
    /* Too long, a surrogate, beyond the last. */
    if ((at[0] == 0xE0 && at[1] < 0xA0) || (at[0] == 0xED && at[1] > 0x9F) || (at[0] == 0xF0 && at[1] < 0x90) ||
        (at[0] == 0xF4 && at[1] > 0x8F)) return 0;
    return count;
}

static void ho_quote(struct ho_bytes *to, const char *text, size_t length) {
    const unsigned char *at = (const unsigned char *)text, *end = at + length;
    ho_add(to, "\"", 1);
    while (at < end) {
        char escape[8];
        size_t count = ho_utf8(at, (size_t)(end - at));
        if (count == 0) ho_add(to, "\xEF\xBF\xBD", 3), count = 1;
        else if (*at < ' ') ho_add(to, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", *at));
        else if (*at == '"' || *at == '\\') ho_add(to, (char[]){'\\', (char)*at}, 2);
        else ho_add(to, at, count);
        at += count;
    }
    ho_add(to, "\"", 1);
}

char *handoff_json_quote(const char *text, size_t length) {
    struct ho_bytes quoted = {0};
    ho_quote(&quoted, text, length);
    if (quoted.failed) free(quoted.at), quoted.at = NULL;
    return quoted.at;
}

/* A value in a document. Members of an object and elements of an array are a list by `next`. 0 is nobody: the root. */
struct ho_value { char type; /* { [ " 0 t f n */ uint32_t child, next; const char *key, *text; size_t length; };
struct ho_json { char *at, *end; struct ho_value *values; uint32_t count, room; };

static void ho_json_space(struct ho_json *json) {
    while (json->at < json->end && strchr(" \t\n\r", *json->at) && *json->at) json->at++;
}

static int ho_json_hex(struct ho_json *json) {
    int value = 0;
    for (int i = 0; i < 4; i++) {
        char c = json->at < json->end ? *json->at++ : 0;
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* Behind the first quote. What is decoded is never longer than what it was, and the last quote has room for the NUL. */
static bool ho_json_string(struct ho_json *json, const char **text, size_t *length) {
    char *out = json->at;
    *text = out;
    while (json->at < json->end) {
        unsigned char c = (unsigned char)*json->at;
        if (c == '"') {
            *length = (size_t)(out - *text);
            *out = 0;
            json->at++;
            return true;
        }
        if (c < ' ') return false;
        if (c != '\\') {
            size_t count = ho_utf8((unsigned char *)json->at, (size_t)(json->end - json->at));
            if (count == 0) return false;
            memmove(out, json->at, count);
            out += count;
            json->at += count;
            continue;
        }
        if (++json->at == json->end) return false;
        static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
        char escape = *json->at++;
        const char *simple = escape ? strchr(from, escape) : NULL;
        if (simple) { *out++ = to[simple - from]; continue; }
        int code = escape == 'u' ? ho_json_hex(json) : -1;
        if (code >= 0xD800 && code < 0xDC00) {
            if (json->end - json->at < 2 || json->at[0] != '\\' || json->at[1] != 'u') return false;
            json->at += 2;
            int low = ho_json_hex(json);
            if (low < 0xDC00 || low > 0xDFFF) return false;
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        } else if (code < 0 || (code >= 0xDC00 && code < 0xE000)) return false;
        if (code < 0x80) *out++ = (char)code;
        else {
            int count = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
            for (int i = count - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80 | (code & 0x3F));
            out[0] = (char)((0xF00 >> count & 0xF0) | code);
            out += count;
        }
    }
    return false;
}

static bool ho_json_number(struct ho_json *json) {
    char *at = json->at, *end = json->end;
    if (at < end && *at == '-') at++;
    if (at == end || *at < '0' || *at > '9') return false;
    if (*at == '0') at++;
    else while (at < end && *at >= '0' && *at <= '9') at++;
    for (int part = 0; part < 2; part++) { /* a fraction, an exponent */
        if (at == end || (part == 0 ? *at != '.' : (*at | 32) != 'e')) continue;
        at++;
        if (part == 1 && at < end && (*at == '+' || *at == '-')) at++;
        if (at == end || *at < '0' || *at > '9') return false;
        while (at < end && *at >= '0' && *at <= '9') at++;
    }
    json->at = at;
    return true;
}

static uint32_t ho_json_value(struct ho_json *json, int depth);

/* Members or elements, behind the bracket. */
static bool ho_json_list(struct ho_json *json, uint32_t parent, char close, int depth) {
    uint32_t last = 0;
    ho_json_space(json);
    if (json->at < json->end && *json->at == close) return json->at++, true;
    for (;;) {
        const char *key = NULL;
        size_t length = 0;
        if (close == '}') {
            ho_json_space(json);
            if (json->at == json->end || *json->at++ != '"' || !ho_json_string(json, &key, &length)) return false;
            ho_json_space(json);
            if (json->at == json->end || *json->at++ != ':') return false;
        }
        uint32_t child = ho_json_value(json, depth + 1);
        if (child == UINT32_MAX) return false;
        json->values[child].key = key;
        if (last) json->values[last].next = child;
        else json->values[parent].child = child;
        last = child;
        ho_json_space(json);
        if (json->at == json->end) return false;
        char c = *json->at++;
        if (c == close) return true;
        if (c != ',') return false;
    }
}

static uint32_t ho_json_value(struct ho_json *json, int depth) {
    ho_json_space(json);
    if (json->at == json->end || depth > HANDOFF_JSON_DEPTH_MAX) return UINT32_MAX;
    if (json->count == json->room) {
        uint32_t room = json->room ? json->room * 2 : 64;
        struct ho_value *values = realloc(json->values, room * sizeof *values);
        if (!values) return UINT32_MAX;
        json->values = values;
        json->room = room;
    }
    uint32_t index = json->count++;
    char c = *json->at;
    struct ho_value value = {.type = c, .text = json->at};
    json->values[index] = value;
    static const char *const words[] = {"true", "false", "null"};
    if (c == '{' || c == '[') {
        json->at++;
        return ho_json_list(json, index, c == '{' ? '}' : ']', depth) ? index : UINT32_MAX;
    }
    if (c == '"') {
        json->at++;
        bool is_string = ho_json_string(json, &value.text, &value.length);
        json->values[index] = value;
        return is_string ? index : UINT32_MAX;
    }
    for (size_t i = 0; i < 3; i++) {
        size_t length = strlen(words[i]);
        if ((size_t)(json->end - json->at) >= length && !memcmp(json->at, words[i], length)) {
            json->at += length;
            json->values[index].length = length;
            return index;
        }
    }
    if (!ho_json_number(json)) return UINT32_MAX;
    json->values[index].type = '0';
    json->values[index].length = (size_t)(json->at - value.text);
    return index;
}

/* Parses an object in `bytes`, which are changed and must stay. */
static bool ho_json_object(struct ho_json *json, char *bytes, size_t length) {
    *json = (struct ho_json){.at = bytes, .end = bytes + length};
    bool is_one = ho_json_value(json, 0) == 0 && json->values[0].type == '{';
    ho_json_space(json);
    if (!is_one || json->at != json->end) return false;
    for (uint32_t i = 0; i < json->count; i++) /* What stands behind a number is not needed any more. */
        if (json->values[i].type == '0') ((char *)(uintptr_t)json->values[i].text)[json->values[i].length] = 0;
    return true;
}

static const struct ho_value *ho_json_get(const struct ho_json *json, const struct ho_value *in, const char *key) {
    if (!in || in->type != '{' || json->count == 0) return NULL;
    for (uint32_t i = in->child; i; i = json->values[i].next)
        if (!strcmp(json->values[i].key, key)) return &json->values[i];
    return NULL;
}

static const char *ho_json_text(const struct ho_value *value) { return value && value->type == '"' ? value->text : NULL; }

static bool ho_json_u64(const struct ho_value *value, uint64_t *number) {
    if (!value || value->type != '0' || value->length > 19) return false;
    uint64_t sum = 0;
    for (size_t i = 0; i < value->length; i++) {
        if (value->text[i] < '0' || value->text[i] > '9') return false;
        sum = sum * 10 + (uint64_t)(value->text[i] - '0');
    }
    *number = sum;
    return true;
}

/* --- the acceptor ---------------------------------------------------------------------------------------------------- */

/* Somebody who connected: a channel of the native protocol, or in the other dialects the sender of one client. The acceptor's
 * thread alone reads, ends and closes it; others send, under the lock. */
struct ho_channel {
    struct ho_channel *next;
    int fd;              /* -1: ended */
    unsigned references; /* handoffs that know it */
    bool greeted;        /* its HELLO came */
    bool broken;         /* a send failed: to be ended */
    long long deadline_ms;
    struct ho_bytes out; /* frames that the thread has yet to send */
    struct ho_bytes message;
    int client; /* of a message that is not whole */
};

struct handoff_acceptor {
    pthread_mutex_t lock;
    pthread_cond_t arrived, changed; /* a client to accept; one less in flight, or a channel less */
    pthread_t thread;
    unsigned references; /* the owner's, and each handoff's */
    int listener, wake;
    atomic_int stop_asked;
    bool threaded, stopped, closing, single; /* single: one client, no thread */
    int load_thousandths;                    /* to be said; -1 */
    struct handoff_options options;
    uid_t *uids;
    gid_t *gids;
    size_t uids_count, gids_count;
    char *path;
    dev_t device;
    ino_t inode;
    struct ho_channel *channels;
    struct handoff *queue, **queue_end; /* arrived, not accepted */
    struct handoff *live;               /* all of them, by `live_next` */
    unsigned in_flight, waiting, queued;
    unsigned char *buffer;
    size_t buffer_length;
    char *hello;
};

struct handoff {
    struct handoff *next, *live_next, **live_link;
    struct handoff_acceptor *acceptor;
    struct ho_channel *channel; /* NULL in the other dialects */
    uint64_t wire_id;
    int client;     /* its socket; -1: a program of CGI, or it was closed */
    int in, out;    /* what is read and written: the client, or standard input and output */
    int wake;       /* an eventfd for REVOKE, once somebody waits; -1 */
    atomic_int revoked;
    bool taken, cgi, counted; /* counted: in flight */
    long long taken_us;
    char *id, *metadata, *document; /* as it came, and what the values point into */
    struct ho_json json;
    struct handoff_field *headers;
    char *data;
    size_t data_length;
    /* What was read before: the head, then bytes that are still to be read; then those of a memfd. */
    char *preread;
    size_t head_length, preread_at, preread_length;
    int body_memfd, preread_memfd;
    off_t body_at, preread_memfd_at;
    /* The body. */
    enum ho_framing framing;
    uint64_t remaining; /* of a length, or of the chunk */
    uint64_t body_length; /* as it was told */
    enum { HO_BODY, HO_SIZE, HO_CHUNK_END, HO_TRAILER, HO_END } at;
    size_t line_length, trailer_length;
    bool line_has_digit, line_is_extension, line_had_cr, continue_wanted;
    int body_error;
    const char *refused; /* why it cannot be served, as soon as it arrives */
    char *ahead; /* read for the chunks' sake */
    size_t ahead_at, ahead_length;
    /* The response. */
    bool head_sent, started, begun, keep_alive;
    int status, write_error;
    uint64_t bytes_out, bytes_before;
    bool raw; /* its socket was asked for */
};

static void ho_close(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static void ho_wake(struct handoff_acceptor *acceptor) {
    if (acceptor->wake < 0) return;
    int before = errno;
    ssize_t ignored = write(acceptor->wake, &(uint64_t){1}, 8);
    (void)ignored; /* Full says it as well. */
    errno = before;
}

static void ho_report(struct handoff_acceptor *acceptor, const char *what) {
    if (acceptor->options.report) acceptor->options.report(what);
}

static void ho_release_acceptor(struct handoff_acceptor *acceptor) { /* under the lock, which is gone afterwards */
    bool is_last = --acceptor->references == 0;
    pthread_mutex_unlock(&acceptor->lock);
    if (!is_last) return;
    pthread_mutex_destroy(&acceptor->lock);
    pthread_cond_destroy(&acceptor->arrived);
    pthread_cond_destroy(&acceptor->changed);
    ho_close(&acceptor->wake);
    free(acceptor->uids);
    free(acceptor->gids);
    free(acceptor->path);
    free(acceptor->buffer);
    free(acceptor->hello);
    free(acceptor);
}

static void ho_release_channel(struct ho_channel *channel) { /* under the lock */
    if (channel->references > 0 || channel->fd >= 0) return;
    free(channel->out.at);
    free(channel->message.at);
    free(channel);
}

/* --- frames ---------------------------------------------------------------------------------------------------------- */

static void ho_put32(unsigned char *to, uint32_t number) {
    for (int i = 0; i < 4; i++) to[i] = (unsigned char)(number >> 8 * i);
}

static uint32_t ho_get32(const unsigned char *from) {
    return from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

static void ho_frame(struct ho_bytes *to, int type, uint64_t id, const void *payload, size_t length) {
    unsigned char header[HANDOFF_HEADER_BYTES] = {0xB7, 1, (unsigned char)type, 0};
    ho_put32(header + 4, (uint32_t)length);
    ho_put32(header + 8, (uint32_t)id);
    ho_put32(header + 12, (uint32_t)(id >> 32));
    ho_add(to, header, sizeof header);
    ho_add(to, payload, length);
}

/* One packet, and a descriptor with it unless that is -1. 0, or -1 with errno. */
static int ho_send_packet(int fd, const void *bytes, size_t length, int descriptor) {
    union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control = {{0}};
    struct iovec part = {(void *)(uintptr_t)bytes, length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (descriptor >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof descriptor);
        memcpy(CMSG_DATA(rights), &descriptor, sizeof descriptor);
    }
    ssize_t sent;
    do sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -1 : 0;
}

/* Not in flight any more; under the lock. */
static void ho_uncount(struct handoff *handoff) {
    if (handoff->counted) handoff->acceptor->in_flight--;
    handoff->counted = false;
}

/* Sends a handoff's frame from the thread that serves it. A gateway that does not read is waited for like a client. Once the
 * last frame is said, the gateway may send the next client: there must be room for it by then. */
static int ho_say(struct handoff *handoff, const struct ho_bytes *packet, int descriptor, bool is_last) {
    struct handoff_acceptor *acceptor = handoff->acceptor;
    long long deadline = ho_now_ms() + acceptor->options.write_timeout_ms;
    if (packet->failed) return errno = ENOMEM, -1;
    for (;;) {
        pthread_mutex_lock(&acceptor->lock);
        struct ho_channel *channel = handoff->channel;
        int result = -1, error = ENOTCONN;
        if (channel && channel->fd >= 0 && !channel->broken) {
            result = ho_send_packet(channel->fd, packet->at, packet->length, descriptor);
            error = errno;
            if (result == 0 && is_last) ho_uncount(handoff);
            /* ETOOMANYREFS: too many descriptors are on their way to the gateway. */
            bool again = error == EAGAIN || error == ENOBUFS || error == ENOMEM || error == ETOOMANYREFS;
            if (result < 0 && (!again || ho_now_ms() >= deadline)) {
                channel->broken = true;
                ho_wake(acceptor);
                error = ENOTCONN;
            }
        }
        pthread_mutex_unlock(&acceptor->lock);
        if (result == 0) return 0;
        if (error == ENOTCONN) return errno = error, -1;
        poll(NULL, 0, 5);
    }
}

/* --- a handoff's beginning and end ------------------------------------------------------------------------------------- */

static void ho_free(struct handoff *handoff) {
    ho_close(&handoff->client);
    ho_close(&handoff->body_memfd);
    ho_close(&handoff->preread_memfd);
    ho_close(&handoff->wake);
    free(handoff->id);
    free(handoff->metadata);
    free(handoff->document);
    free(handoff->json.values);
    free(handoff->headers);
    free(handoff->data);
    free(handoff->preread);
    free(handoff->ahead);
    free(handoff);
}

/* Counts one less in flight, and frees it. */
static void ho_end(struct handoff *handoff) {
    struct handoff_acceptor *acceptor = handoff->acceptor;
    pthread_mutex_lock(&acceptor->lock);
    *handoff->live_link = handoff->live_next;
    if (handoff->live_next) handoff->live_next->live_link = handoff->live_link;
    if (handoff->channel) {
        handoff->channel->references--;
        ho_release_channel(handoff->channel);
    }
    ho_uncount(handoff);
    pthread_cond_broadcast(&acceptor->changed);
    if (acceptor->options.dialect != HANDOFF_BATON) ho_wake(acceptor); /* There may be room again. */
    ho_free(handoff);
    ho_release_acceptor(acceptor);
}

static struct handoff *ho_new(struct handoff_acceptor *acceptor, int client) {
    struct handoff *handoff = calloc(1, sizeof *handoff);
    if (!handoff) return NULL;
    handoff->acceptor = acceptor;
    handoff->client = handoff->in = handoff->out = client;
    handoff->wake = handoff->body_memfd = handoff->preread_memfd = -1;
    return handoff;
}

/* Lists it among the living; under the lock. */
static void ho_register(struct handoff *handoff) {
    struct handoff_acceptor *acceptor = handoff->acceptor;
    handoff->live_next = acceptor->live;
    handoff->live_link = &acceptor->live;
    if (acceptor->live) acceptor->live->live_link = &handoff->live_next;
    acceptor->live = handoff;
    if (handoff->channel) handoff->channel->references++;
    acceptor->references++;
    acceptor->in_flight++;
    handoff->counted = true;
}

/* Under the lock. */
static void ho_enqueue(struct handoff *handoff) {
    struct handoff_acceptor *acceptor = handoff->acceptor;
    *acceptor->queue_end = handoff;
    acceptor->queue_end = &handoff->next;
    acceptor->queued++;
    pthread_cond_signal(&acceptor->arrived);
}

static bool ho_is_stream_socket(int fd) {
    int type = 0;
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &(socklen_t){sizeof type}) == 0 && type == SOCK_STREAM;
}

static void ho_make_id(struct handoff *handoff, const char *id) {
    static atomic_ulong made;
    char made_id[48];
    if (!id || !*id) {
        snprintf(made_id, sizeof made_id, "%ld-%lu", (long)getpid(), atomic_fetch_add(&made, 1) + 1);
        id = made_id;
    }
    handoff->id = strdup(id);
}

/* What of a header is no UTF-8 comes in base64. In place; it gets shorter. */
static const char *ho_base64(const char *text) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *out = (char *)(uintptr_t)text, *start = out;
    unsigned bits = 0, count = 0;
    for (const char *at = text; *at && *at != '='; at++) {
        const char *digit = strchr(digits, *at);
        if (!digit) return NULL;
        bits = bits << 6 | (unsigned)(digit - digits);
        if ((count += 6) >= 8) *out++ = (char)(bits >> (count -= 8));
    }
    *out = 0;
    return start;
}

static bool ho_read_headers(struct handoff *handoff, const struct ho_value *list) {
    struct ho_json *json = &handoff->json;
    size_t count = 0;
    if (list && list->type == '[')
        for (uint32_t i = list->child; i; i = json->values[i].next) count++;
    handoff->headers = calloc(count + 1, sizeof *handoff->headers);
    if (!handoff->headers) return false;
    struct handoff_field *field = handoff->headers;
    for (uint32_t i = count ? list->child : 0; i; i = json->values[i].next) {
        const struct ho_value *pair = &json->values[i];
        const struct ho_value *name = pair->type == '[' && pair->child ? &json->values[pair->child] : NULL;
        const struct ho_value *value = name && name->next ? &json->values[name->next] : NULL;
        const char *text = ho_json_text(value);
        if (value && value->type == '{') {
            text = ho_json_text(ho_json_get(json, value, "base64"));
            text = text ? ho_base64(text) : NULL;
        }
        if (!ho_json_text(name) || !text) return false;
        field->name = name->text;
        (field++)->value = text;
    }
    return true;
}

/* Whether a list of tokens, as in Connection, has one. */
static bool ho_has_token(const char *list, const char *token) {
    size_t length = strlen(token);
    while (list && *list) {
        list += strspn(list, ", 	");
        size_t count = strcspn(list, ", 	");
        if (count == length && !strncasecmp(list, token, length)) return true;
        list += count;
    }
    return false;
}

static const struct ho_value *ho_member(const struct handoff *handoff, const char *in, const char *name) {
    const struct ho_json *json = &handoff->json;
    const struct ho_value *root = json->count ? &json->values[0] : NULL;
    const struct ho_value *outer = in ? ho_json_get(json, root, in) : root;
    return ho_json_get(json, outer, name);
}

static const char *ho_member_text(const struct handoff *handoff, const char *in, const char *name) {
    const char *text = ho_json_text(ho_member(handoff, in, name));
    return text ? text : "";
}

/* Reads the metadata. NULL, or what is wrong with it. */
static const char *ho_read_metadata(struct handoff *handoff, const unsigned char *bytes, size_t length) {
    handoff->metadata = malloc(length + 1);
    handoff->document = malloc(length + 1);
    if (!handoff->metadata || !handoff->document) return "no memory";
    memcpy(handoff->metadata, bytes, length);
    memcpy(handoff->document, bytes, length);
    handoff->metadata[length] = handoff->document[length] = 0;
    if (!ho_json_object(&handoff->json, handoff->document, length)) return "HANDOFF: its metadata is no JSON object";
    if (!ho_read_headers(handoff, ho_member(handoff, "request", "headers"))) return "HANDOFF: its headers are no pairs";
    ho_make_id(handoff, ho_member_text(handoff, NULL, "id"));
    if (!handoff->id) return "no memory";
    const struct ho_value *sent = ho_member(handoff, "response", "head_sent");
    handoff->head_sent = sent && sent->type == 't';
    const char *framing = ho_member_text(handoff, "body", "framing");
    static const char *const framings[] = {"none", "length", "chunked", "memfd"};
    int which = ho_member(handoff, "body", "framing") ? ho_word(framings, 4, framing) : 0;
    if (which < 0) handoff->refused = "a body in a framing that is not known";
    else handoff->framing = (enum ho_framing)which;
    const struct ho_value *remaining = ho_member(handoff, "body", "remaining");
    if (which == HO_LENGTH && remaining && !ho_json_u64(remaining, &handoff->remaining)) handoff->refused = "a body of no length";
    handoff->body_length = handoff->remaining;
    handoff->at = which == HO_CHUNKED ? HO_SIZE : HO_BODY;
    uint64_t head = 0;
    const struct ho_value *head_bytes = ho_member(handoff, "request", "head_bytes");
    if (head_bytes && !ho_json_u64(head_bytes, &head)) handoff->refused = "a head of no length";
    handoff->head_length = (size_t)head;
    const char *expect = handoff_header(handoff, "expect");
    handoff->continue_wanted = expect && !strcasecmp(expect, "100-continue") &&
                               strcmp(ho_member_text(handoff, "request", "version"), "1.0") != 0;
    return NULL;
}

/* The rest of a memfd, into memory. */
static char *ho_read_memfd(int fd, size_t bytes_max, size_t *length) {
    struct stat status;
    if (fstat(fd, &status) || !S_ISREG(status.st_mode) || (uint64_t)status.st_size > bytes_max) return NULL;
    size_t size = (size_t)status.st_size, at = 0;
    char *bytes = malloc(size + 1);
    while (bytes && at < size) {
        ssize_t count = pread(fd, bytes + at, size - at, (off_t)at);
        if (count <= 0) return free(bytes), NULL;
        at += (size_t)count;
    }
    if (bytes) bytes[size] = 0;
    *length = size;
    return bytes;
}

/* --- the acceptor's thread --------------------------------------------------------------------------------------------- */

static void ho_end_channel(struct handoff_acceptor *acceptor, struct ho_channel *channel, const char *why) {
    if (why) ho_report(acceptor, why);
    struct handoff *gone = NULL, *handoff;
    pthread_mutex_lock(&acceptor->lock);
    for (struct ho_channel **link = &acceptor->channels; *link; link = &(*link)->next)
        if (*link == channel) { *link = channel->next; break; }
    ho_close(&channel->fd);
    ho_close(&channel->client);
    /* Who was not accepted is the gateway's: it was never told TAKEN. */
    for (struct handoff **link = &acceptor->queue; (handoff = *link);) {
        if (handoff->channel == channel) {
            *link = handoff->next;
            acceptor->queued--;
            handoff->next = gone;
            gone = handoff;
        } else link = &handoff->next;
    }
    acceptor->queue_end = &acceptor->queue;
    while (*acceptor->queue_end) acceptor->queue_end = &(*acceptor->queue_end)->next;
    channel->references++; /* so that it outlives them */
    pthread_mutex_unlock(&acceptor->lock);
    while ((handoff = gone)) {
        gone = handoff->next;
        ho_end(handoff);
    }
    pthread_mutex_lock(&acceptor->lock);
    channel->references--;
    ho_release_channel(channel);
    pthread_cond_broadcast(&acceptor->changed);
    pthread_mutex_unlock(&acceptor->lock);
}

/* Sends what the thread has to say. False when the channel is of no use any more. */
static bool ho_flush(struct ho_channel *channel) {
    if (channel->out.failed) return false;
    if (channel->out.length == 0) return true;
    if (ho_send_packet(channel->fd, channel->out.at, channel->out.length, -1) == 0) channel->out.length = 0;
    else if (errno != EAGAIN && errno != ENOBUFS && errno != ENOMEM) return false;
    return true;
}

/* Holds a frame back until all of the packet is understood, or no more fits with it. */
static bool ho_answer(struct ho_channel *channel, int type, uint64_t id, const void *payload, size_t length) {
    if (channel->out.length + HANDOFF_HEADER_BYTES + length > HANDOFF_PACKET_BYTES_MAX)
        if (!ho_flush(channel) || channel->out.length > 0) return false; /* It asks, and does not read. */
    ho_frame(&channel->out, type, id, payload, length);
    return !channel->out.failed;
}

static void ho_refusal(struct ho_bytes *to, enum handoff_reason reason, unsigned retry_after_s, const char *message) {
    ho_text(to, "{\"reason\":\"");
    ho_text(to, ho_reasons[reason]);
    ho_text(to, "\"");
    if (retry_after_s) ho_text(to, ",\"retry_after_s\":"), ho_number(to, retry_after_s);
    if (message) {
        ho_text(to, ",\"message\":");
        ho_quote(to, message, strnlen(message, HANDOFF_TEXT_BYTES_MAX));
    }
    ho_text(to, "}");
}

/* Refuses on behalf of nobody: the client was not accepted. */
static bool ho_answer_refused(struct ho_channel *channel, uint64_t id, enum handoff_reason reason, const char *message) {
    struct ho_bytes payload = {0};
    ho_refusal(&payload, reason, 0, message);
    bool is_said = !payload.failed && ho_answer(channel, HO_REFUSED, id, payload.at, payload.length);
    free(payload.at);
    return is_said;
}

static bool ho_sections(const unsigned char *payload, size_t length, const unsigned char **sections, size_t *lengths,
                        int count) {
    for (int i = 0; i < count; i++) {
        if (length < 4) return false;
        lengths[i] = ho_get32(payload);
        if (lengths[i] > length - 4) return false;
        sections[i] = payload + 4;
        payload += 4 + lengths[i];
        length -= 4 + lengths[i];
    }
    return length == 0;
}

/* Makes a handoff of a frame, adopting its descriptors. NULL, with why the channel ends. */
static struct handoff *ho_build(struct handoff_acceptor *acceptor, struct ho_channel *channel, int flags, uint64_t id,
                                const unsigned char *payload, size_t length, int *descriptors, const char **wrong) {
    struct handoff *handoff = ho_new(acceptor, descriptors[0]);
    if (!handoff) return *wrong = "no memory", NULL; /* The caller closes what is left in `descriptors`. */
    descriptors[0] = -1;
    handoff->channel = channel;
    handoff->wire_id = id;
    int data_memfd = -1, next = 1;
    int *memfds[] = {&handoff->body_memfd, &data_memfd, &handoff->preread_memfd};
    for (int i = 0; i < 3; i++)
        if (flags & 1 << i) {
            *memfds[i] = descriptors[next];
            descriptors[next++] = -1;
        }
    const unsigned char *sections[3];
    size_t lengths[3];
    struct stat status;
    if (id == 0) *wrong = "HANDOFF with id 0";
    else if (!ho_sections(payload, length, sections, lengths, 3)) *wrong = "HANDOFF: a payload that is not three sections";
    else if ((flags & 2 && lengths[1]) || (flags & 4 && lengths[2])) *wrong = "HANDOFF: what is in a memfd is in the packet too";
    else if (!ho_is_stream_socket(handoff->client)) *wrong = "HANDOFF: the client is not a stream socket";
    else *wrong = ho_read_metadata(handoff, sections[0], lengths[0]);
    for (int i = 0; !*wrong && i < 3; i++)
        if (*memfds[i] >= 0 && (fstat(*memfds[i], &status) || !S_ISREG(status.st_mode))) *wrong = "HANDOFF: a memfd that is none";
        else if (i == 0 && *memfds[i] >= 0) handoff->body_length = (uint64_t)status.st_size;
    if (!*wrong) {
        size_t bytes_max = acceptor->options.data_bytes_max;
        if (!handoff->refused && (handoff->framing == HO_MEMFD) != (flags & 1)) handoff->refused = "a memfd with another framing";
        if (data_memfd >= 0) handoff->data = ho_read_memfd(data_memfd, bytes_max, &handoff->data_length);
        else if (lengths[1] <= bytes_max && (handoff->data = malloc(lengths[1] + 1))) {
            memcpy(handoff->data, sections[1], lengths[1]);
            handoff->data[lengths[1]] = 0;
            handoff->data_length = lengths[1];
        }
        if (!handoff->data) handoff->refused = "the data is larger than data_bytes_max";
        handoff->preread_length = lengths[2];
        if (handoff->preread_memfd >= 0 && handoff->head_length > 0) { /* A head is wanted in memory, whatever it brings. */
            handoff->preread = ho_read_memfd(handoff->preread_memfd, SIZE_MAX - 1, &handoff->preread_length);
            ho_close(&handoff->preread_memfd);
        } else if ((handoff->preread = malloc(lengths[2] + 1))) memcpy(handoff->preread, sections[2], lengths[2]);
        if (!handoff->preread) *wrong = "no memory";
        else if (handoff->head_length > handoff->preread_length) *wrong = "HANDOFF: a head that is longer than what came";
        handoff->preread_at = handoff->head_length;
    }
    ho_close(&data_memfd);
    pthread_mutex_lock(&acceptor->lock);
    for (struct handoff *other = acceptor->live; !*wrong && other; other = other->live_next)
        if (other->channel == channel && other->wire_id == id && other->counted) *wrong = "HANDOFF with an id that is in flight";
    pthread_mutex_unlock(&acceptor->lock);
    if (!*wrong) return handoff;
    ho_free(handoff);
    return NULL;
}

/* Queues or refuses it. False when the gateway does not read that. */
static bool ho_admit(struct handoff_acceptor *acceptor, struct ho_channel *channel, struct handoff *handoff) {
    enum handoff_reason reason = HANDOFF_UNSUPPORTED;
    const char *refused = handoff->refused;
    uint64_t id = handoff->wire_id;
    pthread_mutex_lock(&acceptor->lock);
    if (!refused && acceptor->stopped) reason = HANDOFF_WHILE_DRAINING, refused = "about to end";
    else if (!refused && acceptor->in_flight >= acceptor->options.in_flight_max) reason = HANDOFF_OVERLOADED, refused = "in_flight_max";
    if (!refused) {
        ho_register(handoff);
        ho_enqueue(handoff);
    }
    pthread_mutex_unlock(&acceptor->lock);
    if (!refused) return true;
    ho_free(handoff); /* The copy is closed first, then it is said. */
    return ho_answer_refused(channel, id, reason, refused);
}

static const char *ho_greeted(struct ho_channel *channel, const unsigned char *payload, size_t length) {
    if (channel->greeted) return "a second HELLO";
    struct ho_json json = {0};
    char *copy = malloc(length + 1);
    bool is_agreed = false;
    if (copy) memcpy(copy, payload, length);
    if (copy && ho_json_object(&json, copy, length)) {
        const struct ho_value *versions = ho_json_get(&json, &json.values[0], "versions");
        uint64_t version;
        if (versions && versions->type == '[')
            for (uint32_t i = versions->child; i; i = json.values[i].next)
                is_agreed |= ho_json_u64(&json.values[i], &version) && version == 1;
    }
    free(json.values);
    free(copy);
    if (!is_agreed) return "HELLO without version 1";
    channel->greeted = true;
    return NULL;
}

static void ho_revoke(struct handoff_acceptor *acceptor, struct ho_channel *channel, uint64_t id) {
    pthread_mutex_lock(&acceptor->lock);
    for (struct handoff *handoff = acceptor->live; handoff; handoff = handoff->live_next)
        if (handoff->channel == channel && handoff->wire_id == id) {
            atomic_store(&handoff->revoked, 1);
            ssize_t ignored = handoff->wake >= 0 ? write(handoff->wake, &(uint64_t){1}, 8) : 0;
            (void)ignored;
        }
    pthread_mutex_unlock(&acceptor->lock);
}

static bool ho_is_object(const unsigned char *payload, size_t length) {
    struct ho_json json = {0};
    char *copy = malloc(length + 1);
    if (copy) memcpy(copy, payload, length);
    bool is_object = copy && ho_json_object(&json, copy, length);
    free(json.values);
    free(copy);
    return is_object;
}

/* Understands one frame, without doing anything. NULL, or why the channel ends. A HANDOFF is put at the end of `*arrived`. */
static const char *ho_check_frame(struct handoff_acceptor *acceptor, struct ho_channel *channel, const unsigned char *frame,
                                  size_t length, int *descriptors, struct handoff **arrived) {
    int type = frame[2], flags = frame[3];
    uint64_t id = ho_get32(frame + 8) | (uint64_t)ho_get32(frame + 12) << 32;
    const unsigned char *payload = frame + HANDOFF_HEADER_BYTES;
    const char *wrong = NULL;
    if (!channel->greeted && type != HO_HELLO) return "a frame before HELLO";
    switch (type) {
    case HO_HELLO:
        return id ? "HELLO with an id" : ho_greeted(channel, payload, length);
    case HO_HANDOFF:
        for (; *arrived; arrived = &(*arrived)->next)
            if ((*arrived)->wire_id == id) return "HANDOFF with an id that is in flight";
        *arrived = ho_build(acceptor, channel, flags, id, payload, length, descriptors, &wrong);
        return wrong;
    case HO_REVOKE:
        return id == 0 || !ho_is_object(payload, length) ? "REVOKE that is not understood" : NULL;
    case HO_PING:
    case HO_PONG:
        return NULL;
    default:
        return (type == 0 || type > HO_PONG) && flags & 0x80 ? NULL : "a frame that no gateway sends";
    }
}

/* How many descriptors belong to a frame. */
static int ho_belonging(const unsigned char *frame) {
    return frame[2] == HO_HANDOFF ? 1 + (frame[3] & 1) + (frame[3] >> 1 & 1) + (frame[3] >> 2 & 1) : 0;
}

/* NULL, or why the channel ends. A packet counts as a whole: nothing of it is done before all of it is understood. */
static const char *ho_take_packet(struct handoff_acceptor *acceptor, struct ho_channel *channel, const unsigned char *packet,
                                  size_t length, int *descriptors, int count) {
    int belong = 0;
    for (size_t at = 0; at < length;) {
        if (length - at < HANDOFF_HEADER_BYTES) return "a packet that ends within a header";
        const unsigned char *frame = packet + at;
        if (frame[0] != 0xB7 || frame[1] != 1) return "a frame of another protocol or version";
        if (ho_get32(frame + 4) > length - at - HANDOFF_HEADER_BYTES) return "a packet that ends within a frame";
        belong += ho_belonging(frame);
        at += HANDOFF_HEADER_BYTES + ho_get32(frame + 4);
    }
    if (belong != count) return "descriptors where none belong, or too few";
    struct handoff *arrived = NULL, *handoff;
    const char *wrong = NULL;
    for (size_t at = 0; at < length && !wrong; at += HANDOFF_HEADER_BYTES + ho_get32(packet + at + 4)) {
        wrong = ho_check_frame(acceptor, channel, packet + at, ho_get32(packet + at + 4), descriptors, &arrived);
        descriptors += ho_belonging(packet + at);
    }
    for (size_t at = 0; at < length && !wrong; at += HANDOFF_HEADER_BYTES + ho_get32(packet + at + 4)) {
        const unsigned char *frame = packet + at;
        uint64_t id = ho_get32(frame + 8) | (uint64_t)ho_get32(frame + 12) << 32;
        bool is_read = true;
        if (frame[2] == HO_PING) is_read = ho_answer(channel, HO_PONG, id, frame + HANDOFF_HEADER_BYTES, ho_get32(frame + 4));
        else if (frame[2] == HO_REVOKE) ho_revoke(acceptor, channel, id);
        else if (frame[2] == HO_HANDOFF) {
            handoff = arrived;
            arrived = handoff->next;
            handoff->next = NULL;
            is_read = ho_admit(acceptor, channel, handoff);
        }
        if (!is_read) wrong = "a gateway that does not read";
    }
    while ((handoff = arrived)) {
        arrived = handoff->next;
        ho_free(handoff);
    }
    return wrong;
}

/* Receives once: every descriptor is adopted, whatever comes of it. */
static ssize_t ho_receive(int fd, void *buffer, size_t length, int *descriptors, int *count, int *flags, struct ucred *sender) {
    union {
        char bytes[CMSG_SPACE(HANDOFF_DESCRIPTORS_MAX * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
        struct cmsghdr align;
    } control;
    struct iovec part = {buffer, length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t received;
    do received = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    while (received < 0 && errno == EINTR);
    *count = 0;
    if (received < 0) return -1;
    *flags = message.msg_flags;
    for (struct cmsghdr *part_of = CMSG_FIRSTHDR(&message); part_of; part_of = CMSG_NXTHDR(&message, part_of)) {
        size_t bytes = part_of->cmsg_len - CMSG_LEN(0);
        if (part_of->cmsg_level != SOL_SOCKET) continue;
        if (part_of->cmsg_type == SCM_CREDENTIALS && sender && bytes >= sizeof *sender)
            memcpy(sender, CMSG_DATA(part_of), sizeof *sender);
        if (part_of->cmsg_type != SCM_RIGHTS) continue;
        for (size_t i = 0; i < bytes / sizeof(int); i++) {
            int adopted;
            memcpy(&adopted, CMSG_DATA(part_of) + i * sizeof adopted, sizeof adopted);
            if (*count < HANDOFF_DESCRIPTORS_MAX) descriptors[(*count)++] = adopted;
            else close(adopted);
        }
    }
    return received;
}

static void ho_close_all(int *descriptors, int count) {
    for (int i = 0; i < count; i++) ho_close(&descriptors[i]);
}

/* Whether the descriptors of a client could be received. The kernel drops what does not fit into the process's table, and the
 * message counts as read all the same. */
static bool ho_has_room(const struct handoff_acceptor *acceptor) {
    int spare[4], count = 0; /* the client and its memfds */
    while (count < 4 && (spare[count] = fcntl(acceptor->wake, F_DUPFD_CLOEXEC, 3)) >= 0) count++;
    bool has_room = count == 4;
    ho_close_all(spare, count);
    return has_room;
}

/* Reads a channel until nothing is there. */
static void ho_read_channel(struct handoff_acceptor *acceptor, struct ho_channel *channel, bool *exhausted) {
    for (int packets = 0; packets < 64 && channel->out.length == 0; packets++) { /* others want to be read too */
        int descriptors[HANDOFF_DESCRIPTORS_MAX], count, flags = 0;
        if (!ho_has_room(acceptor)) { *exhausted = true; return; }
        ssize_t received = ho_receive(channel->fd, acceptor->buffer, acceptor->buffer_length, descriptors, &count, &flags, NULL);
        if (received < 0 && errno == EAGAIN) return;
        const char *wrong = NULL;
        bool is_end = received <= 0;
        if (!is_end && (flags & (MSG_TRUNC | MSG_CTRUNC) || received > HANDOFF_PACKET_BYTES_MAX)) wrong = "a packet that was cut off";
        else if (!is_end) wrong = ho_take_packet(acceptor, channel, acceptor->buffer, (size_t)received, descriptors, count);
        ho_close_all(descriptors, count); /* those that nobody took are -1 by now */
        if (wrong || is_end || !ho_flush(channel)) {
            ho_end_channel(acceptor, channel, wrong);
            return;
        }
    }
}

static struct handoff *ho_of_message(struct handoff_acceptor *acceptor, int client, const char *bytes, size_t length) {
    struct handoff *handoff = ho_new(acceptor, client);
    if (!handoff) return NULL;
    if (acceptor->options.dialect != HANDOFF_DATAGRAM && length == 1 && bytes[0] == 0) length = 0; /* no data */
    handoff->head_sent = acceptor->options.dialect == HANDOFF_FDPASS;
    handoff->data = malloc(length + 1);
    handoff->headers = calloc(1, sizeof *handoff->headers);
    handoff->metadata = strdup("{}");
    ho_make_id(handoff, NULL);
    if (!handoff->data || !handoff->headers || !handoff->metadata || !handoff->id) {
        handoff->client = -1; /* still the caller's */
        ho_free(handoff);
        return NULL;
    }
    if (length) memcpy(handoff->data, bytes, length);
    handoff->data[length] = 0;
    handoff->data_length = length;
    return handoff;
}

/* In the other dialects: judges a message that is whole, and queues its client. NULL, or what is wrong. */
static const char *ho_judge(struct handoff_acceptor *acceptor, int *client, const char *bytes, size_t length) {
    if (*client < 0) return "a message without a client";
    if (!ho_is_stream_socket(*client)) return "the descriptor is not a stream socket";
    if (length > acceptor->options.data_bytes_max) return "the message is larger than data_bytes_max";
    if (acceptor->options.dialect == HANDOFF_FDPASS && (length != 1 || bytes[0])) return "a message where fdpass has none";
    struct handoff *handoff = ho_of_message(acceptor, *client, bytes, length);
    if (!handoff) return "no memory";
    *client = -1;
    pthread_mutex_lock(&acceptor->lock);
    ho_register(handoff);
    ho_enqueue(handoff);
    pthread_mutex_unlock(&acceptor->lock);
    return NULL;
}

/* Reads on in a message of another dialect. True once the connection is done with. */
static bool ho_read_message(struct handoff_acceptor *acceptor, struct ho_channel *peer, const char **wrong) {
    for (;;) {
        int descriptors[HANDOFF_DESCRIPTORS_MAX], count, flags = 0;
        ssize_t received = ho_receive(peer->fd, acceptor->buffer, acceptor->buffer_length, descriptors, &count, &flags, NULL);
        if (received < 0 && errno == EAGAIN) return false;
        bool is_stream = acceptor->options.dialect == HANDOFF_STREAM;
        if (received < 0) *wrong = "the connection broke";
        else if (flags & (MSG_TRUNC | MSG_CTRUNC)) *wrong = "a message that was cut off";
        else if (count + (peer->client >= 0) > 1) *wrong = "descriptors where one belongs";
        else if (peer->message.length + (size_t)received > acceptor->options.data_bytes_max) *wrong = "the message is larger than data_bytes_max";
        if (!*wrong && count == 1) peer->client = descriptors[0], count = 0;
        ho_close_all(descriptors, count);
        if (*wrong) return true;
        ho_add(&peer->message, acceptor->buffer, (size_t)received);
        if (peer->message.failed) return *wrong = "no memory", true;
        if (is_stream && received > 0) continue; /* the end is EOF */
        /* Closing without a word is how others ask whether somebody listens here. */
        if (received > 0 || is_stream) *wrong = ho_judge(acceptor, &peer->client, peer->message.at, peer->message.length);
        return true;
    }
}

static bool ho_is_allowed(const struct handoff_acceptor *acceptor, const struct ucred *peer) {
    for (size_t i = 0; i < acceptor->uids_count; i++)
        if (acceptor->uids[i] == peer->uid) return true;
    for (size_t i = 0; i < acceptor->gids_count; i++)
        if (acceptor->gids[i] == peer->gid) return true;
    return false;
}

static void ho_read_datagram(struct handoff_acceptor *acceptor) {
    int descriptors[HANDOFF_DESCRIPTORS_MAX], count, flags = 0;
    struct ucred sender = {0, (uid_t)-1, (gid_t)-1};
    ssize_t received = ho_receive(acceptor->listener, acceptor->buffer, acceptor->buffer_length, descriptors, &count, &flags, &sender);
    if (received < 0) return;
    const char *wrong = NULL;
    if (!ho_is_allowed(acceptor, &sender)) wrong = "a datagram from somebody who may not hand over";
    else if (flags & (MSG_TRUNC | MSG_CTRUNC)) wrong = "a datagram that was cut off";
    else if (count > 1) wrong = "descriptors where one belongs";
    else if (count == 0) wrong = "a message without a client";
    else wrong = ho_judge(acceptor, &descriptors[0], (const char *)acceptor->buffer, (size_t)received);
    ho_close_all(descriptors, count);
    if (wrong) ho_report(acceptor, wrong);
}

static void ho_accept_peer(struct handoff_acceptor *acceptor, bool *exhausted) {
    int fd = accept4(acceptor->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        *exhausted = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
        return;
    }
    struct ucred peer = {0, (uid_t)-1, (gid_t)-1};
    struct ho_channel *channel = NULL;
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &(socklen_t){sizeof peer});
    if (!ho_is_allowed(acceptor, &peer)) ho_report(acceptor, "a peer that may not hand over");
    else channel = calloc(1, sizeof *channel);
    if (!channel) { close(fd); return; }
    channel->fd = fd;
    channel->client = -1;
    channel->deadline_ms = ho_now_ms() + HANDOFF_RECEIVE_TIMEOUT_MS;
    pthread_mutex_lock(&acceptor->lock);
    channel->next = acceptor->channels;
    acceptor->channels = channel;
    pthread_mutex_unlock(&acceptor->lock);
    if (acceptor->options.dialect != HANDOFF_BATON) return;
    if (!ho_answer(channel, HO_HELLO, 0, acceptor->hello, strlen(acceptor->hello)) || !ho_flush(channel))
        ho_end_channel(acceptor, channel, NULL);
}

static void ho_close_listener(struct handoff_acceptor *acceptor) {
    struct stat status;
    if (acceptor->listener >= 0 && acceptor->path && !lstat(acceptor->path, &status) && status.st_dev == acceptor->device &&
        status.st_ino == acceptor->inode)
        unlink(acceptor->path); /* unless a successor has put its own there */
    ho_close(&acceptor->listener);
}

/* Says how busy this daemon is, to those who read. */
static void ho_say_load(struct handoff_acceptor *acceptor) {
    pthread_mutex_lock(&acceptor->lock);
    int thousandths = acceptor->load_thousandths;
    unsigned in_flight = acceptor->in_flight;
    acceptor->load_thousandths = -1;
    pthread_mutex_unlock(&acceptor->lock);
    if (thousandths < 0 || acceptor->options.dialect != HANDOFF_BATON) return;
    char text[64]; /* whatever the locale's decimal point is */
    int length = snprintf(text, sizeof text, "{\"in_flight\":%u,\"load\":%d.%03d}", in_flight, thousandths / 1000, thousandths % 1000);
    for (struct ho_channel *channel = acceptor->channels, *next; channel; channel = next) {
        next = channel->next;
        if (channel->out.length) continue;
        if (!ho_answer(channel, HO_LOAD, 0, text, (size_t)length) || !ho_flush(channel)) ho_end_channel(acceptor, channel, NULL);
    }
}

/* No more clients: what listens is closed, and each gateway is told. */
static void ho_begin_stop(struct handoff_acceptor *acceptor) {
    ho_close_listener(acceptor);
    pthread_mutex_lock(&acceptor->lock);
    acceptor->stopped = true;
    struct handoff *queue = NULL, *handoff;
    if (acceptor->options.dialect == HANDOFF_BATON) { /* In the others they have been read, and somebody waits for each. */
        queue = acceptor->queue;
        acceptor->queue = NULL;
        acceptor->queue_end = &acceptor->queue;
        acceptor->queued = 0;
    }
    pthread_cond_broadcast(&acceptor->arrived);
    pthread_mutex_unlock(&acceptor->lock);
    for (struct ho_channel *channel = acceptor->channels, *next; channel; channel = next) {
        next = channel->next;
        if (acceptor->options.dialect != HANDOFF_BATON) ho_end_channel(acceptor, channel, NULL); /* unread: the gateway's */
        else if (!ho_answer(channel, HO_DRAINING, 0, NULL, 0)) channel->broken = true;
    }
    while ((handoff = queue)) {
        struct ho_channel *channel = handoff->channel;
        uint64_t id = handoff->wire_id;
        queue = handoff->next;
        ho_end(handoff);
        if (!ho_answer_refused(channel, id, HANDOFF_WHILE_DRAINING, "about to end")) channel->broken = true;
    }
    for (struct ho_channel *channel = acceptor->channels; channel; channel = channel->next)
        if (!ho_flush(channel)) channel->broken = true;
    ho_wake(acceptor); /* for the broken ones */
}

static void *ho_run(void *context) {
    struct handoff_acceptor *acceptor = context;
    bool is_native = acceptor->options.dialect == HANDOFF_BATON, is_datagram = acceptor->options.dialect == HANDOFF_DATAGRAM;
    struct pollfd *polled = NULL;
    struct ho_channel **peers = NULL;
    size_t room = 0;
    bool exhausted = false;
    for (;;) {
        if (atomic_load(&acceptor->stop_asked) && !acceptor->stopped) ho_begin_stop(acceptor);
        ho_say_load(acceptor);
        size_t count = 0;
        long long now = ho_now_ms(), first = -1;
        pthread_mutex_lock(&acceptor->lock);
        bool closing = acceptor->closing;
        /* In the other dialects a message is read when somebody waits for it: reading takes the client. */
        bool wanted = is_native || (acceptor->waiting > acceptor->queued && acceptor->in_flight < acceptor->options.in_flight_max);
        for (struct ho_channel *channel = acceptor->channels; channel; channel = channel->next) count++;
        pthread_mutex_unlock(&acceptor->lock);
        if (closing) break;
        if (count + 2 > room) {
            room = 2 * (count + 2);
            struct pollfd *more_polled = realloc(polled, room * sizeof *polled);
            if (more_polled) polled = more_polled;
            struct ho_channel **more_peers = realloc(peers, room * sizeof *peers);
            if (more_peers) peers = more_peers;
            if (!more_polled || !more_peers) { room = 0; poll(NULL, 0, HANDOFF_EXHAUSTED_PAUSE_MS); continue; }
        }
        bool listens = wanted && !exhausted && (is_native || count < HANDOFF_INCOMING_MAX);
        polled[0] = (struct pollfd){acceptor->wake, POLLIN, 0};
        polled[1] = (struct pollfd){listens ? acceptor->listener : -1, POLLIN, 0};
        count = 2;
        for (struct ho_channel *channel = acceptor->channels; channel; channel = channel->next) {
            short events = channel->out.length ? POLLOUT : POLLIN;
            peers[count] = channel;
            polled[count++] = (struct pollfd){wanted && !exhausted ? channel->fd : -1, events, 0};
            if (wanted && !channel->greeted && (first < 0 || channel->deadline_ms < first)) first = channel->deadline_ms;
        }
        if (exhausted) first = now + HANDOFF_EXHAUSTED_PAUSE_MS;
        exhausted = false;
        int ready = poll(polled, count, first < 0 ? -1 : first <= now ? 0 : (int)(first - now + 1));
        if (ready < 0) { poll(NULL, 0, errno == EINTR ? 0 : HANDOFF_EXHAUSTED_PAUSE_MS); continue; }
        uint64_t rung;
        ssize_t ignored = polled[0].revents ? read(acceptor->wake, &rung, sizeof rung) : 0;
        (void)ignored;
        now = ho_now_ms();
        for (size_t i = 2; i < count; i++) {
            struct ho_channel *channel = peers[i];
            const char *wrong = NULL;
            pthread_mutex_lock(&acceptor->lock);
            bool is_broken = channel->broken;
            wanted = is_native || (acceptor->waiting > acceptor->queued && acceptor->in_flight < acceptor->options.in_flight_max);
            pthread_mutex_unlock(&acceptor->lock);
            if (is_broken) ho_end_channel(acceptor, channel, NULL);
            else if (polled[i].revents && is_native) {
                if (!ho_flush(channel)) ho_end_channel(acceptor, channel, NULL);
                else ho_read_channel(acceptor, channel, &exhausted);
            } else if (polled[i].revents && wanted) {
                if (!ho_has_room(acceptor)) exhausted = true;
                else if (ho_read_message(acceptor, channel, &wrong)) ho_end_channel(acceptor, channel, wrong);
            } else if (!polled[i].revents && polled[i].fd >= 0 && !channel->greeted && channel->deadline_ms < now)
                ho_end_channel(acceptor, channel, is_native ? "no HELLO in time" : "a message that is not whole in time");
        }
        if (polled[1].revents && is_datagram) {
            if (!ho_has_room(acceptor)) exhausted = true;
            else ho_read_datagram(acceptor);
        } else if (polled[1].revents) ho_accept_peer(acceptor, &exhausted);
    }
    while (acceptor->channels) {
        /* What came in the last moment is refused, rather than left unread. */
        struct ho_channel *channel = acceptor->channels;
        bool is_open = is_native && channel->greeted && channel->out.length == 0;
        if (is_open) ho_read_channel(acceptor, channel, &exhausted);
        if (!is_open || acceptor->channels == channel) ho_end_channel(acceptor, channel, NULL);
    }
    free(polled);
    free(peers);
    return NULL;
}

/* --- listening --------------------------------------------------------------------------------------------------------- */

/* Whom to believe. What is unclear is an error: rather nobody than the wrong one. */
static bool ho_read_allowed(struct handoff_acceptor *acceptor) {
    const struct handoff_options *options = &acceptor->options;
    const char *listed = getenv("BATON_GATEWAY_UIDS");
    bool is_given = options->allow_uids || options->allow_gids;
    size_t count = is_given ? options->allow_uids_count : 2;
    for (const char *at = listed; !is_given && at && *at; at++) count += *at == ',';
    acceptor->uids = calloc(count + 1, sizeof *acceptor->uids);
    acceptor->gids = calloc(options->allow_gids_count + 1, sizeof *acceptor->gids);
    if (!acceptor->uids || !acceptor->gids) return ho_fail(ENOMEM, "no memory"), false;
    if (is_given) {
        if (options->allow_uids) memcpy(acceptor->uids, options->allow_uids, count * sizeof *acceptor->uids);
        if (options->allow_gids) memcpy(acceptor->gids, options->allow_gids, options->allow_gids_count * sizeof *acceptor->gids);
        acceptor->uids_count = options->allow_uids ? count : 0;
        acceptor->gids_count = options->allow_gids ? options->allow_gids_count : 0;
        return true;
    }
    if (!listed) {
        acceptor->uids[acceptor->uids_count++] = geteuid();
        acceptor->uids[acceptor->uids_count++] = 0;
        return true;
    }
    for (const char *at = listed;; at++) {
        uint64_t uid = 0;
        at += strspn(at, " \t");
        size_t digits = strspn(at, "0123456789");
        for (size_t i = 0; i < digits && digits <= 10; i++) uid = uid * 10 + (uint64_t)(at[i] - '0');
        at += digits;
        at += strspn(at, " \t");
        if (digits == 0 || digits > 10 || uid >= UINT32_MAX || (*at && *at != ','))
            return ho_fail(EINVAL, "BATON_GATEWAY_UIDS is a list of user ids separated by commas"), false;
        acceptor->uids[acceptor->uids_count++] = (uid_t)uid;
        if (!*at) return true;
    }
}

static void ho_write_hello(struct handoff_acceptor *acceptor) {
    const struct handoff_options *options = &acceptor->options;
    struct ho_bytes hello = {0};
    ho_text(&hello, "{\"versions\":[1],\"name\":");
    ho_quote(&hello, options->name, strnlen(options->name, HANDOFF_TEXT_BYTES_MAX));
    ho_text(&hello, ",\"pid\":");
    ho_number(&hello, (unsigned long long)getpid());
    ho_text(&hello, ",\"in_flight_max\":");
    ho_number(&hello, options->in_flight_max);
    ho_text(&hello, ",\"data_bytes_max\":");
    ho_number(&hello, options->data_bytes_max);
    ho_text(&hello, ",\"roles\":[");
    for (const char *const *role = options->roles; role && *role && hello.length < HANDOFF_PACKET_BYTES_MAX / 8; role++) {
        if (role != options->roles) ho_text(&hello, ",");
        ho_quote(&hello, *role, strnlen(*role, HANDOFF_TEXT_BYTES_MAX));
    }
    ho_text(&hello, "]}");
    if (hello.failed) free(hello.at), hello.at = NULL;
    acceptor->hello = hello.at;
}

static struct handoff_acceptor *ho_new_acceptor(const struct handoff_options *given) {
    struct handoff_acceptor *acceptor = calloc(1, sizeof *acceptor);
    if (!acceptor) return ho_fail(ENOMEM, "no memory");
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&acceptor->lock, NULL);
    pthread_cond_init(&acceptor->arrived, &monotonic);
    pthread_cond_init(&acceptor->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    acceptor->references = 1;
    acceptor->listener = acceptor->load_thousandths = -1;
    acceptor->queue_end = &acceptor->queue;
    acceptor->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct handoff_options *options = &acceptor->options;
    if (given) *options = *given;
    if (!options->in_flight_max) options->in_flight_max = 100;
    if (!options->data_bytes_max) options->data_bytes_max = 1 << 20;
    if (options->write_timeout_ms <= 0) options->write_timeout_ms = 30000;
    if (options->body_timeout_ms <= 0) options->body_timeout_ms = 30000;
    if (!options->name) options->name = "daemon";
    if (!options->socket_mode) options->socket_mode = 0660;
    ho_write_hello(acceptor);
    /* One byte more, so that what is too large is seen to be. */
    size_t largest = options->dialect == HANDOFF_BATON ? HANDOFF_PACKET_BYTES_MAX : options->data_bytes_max;
    acceptor->buffer_length = largest + 1;
    acceptor->buffer = malloc(acceptor->buffer_length);
    if (acceptor->wake < 0) ho_fail(errno, "eventfd: %s", strerror(errno));
    else if (!acceptor->hello || !acceptor->buffer) ho_fail(ENOMEM, "no memory");
    else if (ho_read_allowed(acceptor)) return acceptor;
    int error = errno;
    handoff_close(acceptor);
    errno = error;
    return NULL;
}

/* Starts the acceptor's thread, which gets no signals: they are for the program's own. */
static struct handoff_acceptor *ho_start(struct handoff_acceptor *acceptor) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&acceptor->thread, NULL, ho_run, acceptor);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    acceptor->threaded = error == 0;
    if (!error) return acceptor;
    handoff_close(acceptor);
    return ho_fail(error, "a thread: %s", strerror(error));
}

/* The path as an address; longer than an address can be, by way of its directory, whose descriptor is kept open meanwhile. */
static bool ho_address(const char *path, struct sockaddr_un *address, int *directory) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    *directory = -1;
    if (strlen(path) < sizeof address->sun_path) return strcpy(address->sun_path, path), true;
    char *copy = strdup(path), *slash = copy ? strrchr(copy, '/') : NULL;
    int written = -1;
    if (slash) {
        *slash = 0;
        *directory = open(slash == copy ? "/" : copy, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (*directory >= 0)
            written = snprintf(address->sun_path, sizeof address->sun_path, "/proc/self/fd/%d/%s", *directory, slash + 1);
    }
    free(copy);
    if (*directory >= 0 && written > 0 && (size_t)written < sizeof address->sun_path) return true;
    if (*directory >= 0 || !slash) errno = ENAMETOOLONG;
    ho_close(directory);
    return false;
}

static int ho_socket_type(enum handoff_dialect dialect) {
    return dialect == HANDOFF_DATAGRAM ? SOCK_DGRAM
           : dialect == HANDOFF_STREAM || dialect == HANDOFF_FDPASS ? SOCK_STREAM : SOCK_SEQPACKET;
}

/* Makes way at `path`, unless somebody listens there. */
static bool ho_remove_stale(const char *path, const struct sockaddr_un *address, int type) {
    struct stat status;
    if (lstat(path, &status)) return errno == ENOENT;
    if (!S_ISSOCK(status.st_mode)) return errno = EADDRINUSE, false;
    int probe = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe < 0) return false;
    int error = connect(probe, (const struct sockaddr *)address, sizeof *address) ? errno : 0;
    close(probe);
    if (error == ENOENT) return true;
    if (error == ECONNREFUSED) return unlink(path) == 0 || errno == ENOENT;
    /* EAGAIN is a full backlog, EPROTOTYPE another type of socket, EPERM one that talks to somebody else: all alive. */
    errno = error == 0 || error == EAGAIN || error == EPROTOTYPE || error == EPERM ? EADDRINUSE : error;
    return false;
}

struct handoff_acceptor *handoff_listen(const char *path, const struct handoff_options *options) {
    struct handoff_acceptor *acceptor = ho_new_acceptor(options);
    if (!acceptor) return NULL;
    struct sockaddr_un address;
    struct stat status;
    int directory = -1, type = ho_socket_type(acceptor->options.dialect);
    const char *failed = NULL;
    if (!ho_address(path, &address, &directory)) failed = "its address";
    else if (!ho_remove_stale(path, &address, type)) failed = "who stands there";
    else if ((acceptor->listener = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) < 0) failed = "socket";
    /* The kernel says who sent a datagram if it was asked to before that. */
    else if (type == SOCK_DGRAM && setsockopt(acceptor->listener, SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int))) failed = "SO_PASSCRED";
    /* The file is made with no more than this, whatever the umask is, so that nobody slips in before it has its mode. */
    else if (fchmod(acceptor->listener, acceptor->options.socket_mode)) failed = "fchmod";
    else if (bind(acceptor->listener, (struct sockaddr *)&address, sizeof address)) failed = "bind";
    else if (stat(path, &status) || !(acceptor->path = strdup(path))) failed = "its file";
    else {
        acceptor->device = status.st_dev;
        acceptor->inode = status.st_ino;
        if (chmod(path, acceptor->options.socket_mode)) failed = "chmod";
        else if (type != SOCK_DGRAM && listen(acceptor->listener, 128)) failed = "listen";
    }
    int error = errno;
    ho_close(&directory);
    if (failed) {
        handoff_close(acceptor);
        return ho_fail(error, "%s: %s: %s", path, failed, strerror(error));
    }
    return ho_start(acceptor);
}

static bool ho_is_same_file(int one, int other) {
    struct stat a, b;
    return !fstat(one, &a) && !fstat(other, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* The one client of a program that was started for it. */
static struct handoff *ho_the_one(struct handoff_acceptor *acceptor) {
    bool is_cgi = getenv("GATEWAY_INTERFACE") != NULL;
    int from = ho_is_stream_socket(0) ? 0 : is_cgi && ho_is_stream_socket(1) ? 1 : -1;
    int client = from < 0 ? -1 : fcntl(from, F_DUPFD_CLOEXEC, 3);
    if (from >= 0 && client < 0) return ho_fail(errno, "the client: %s", strerror(errno));
    const char *data = getenv("HANDOFF_DATA"), *file = getenv("HANDOFF_DATA_FILE");
    size_t length = data ? strlen(data) : 0;
    char *whole = NULL;
    int data_file = file ? open(file, O_RDONLY | O_CLOEXEC) : -1;
    if (data_file >= 0) whole = ho_read_memfd(data_file, acceptor->options.data_bytes_max, &length);
    ho_close(&data_file);
    acceptor->options.dialect = HANDOFF_DATAGRAM; /* Whatever the data is, it is what it is. */
    struct handoff *handoff = ho_of_message(acceptor, client, whole ? whole : data ? data : "", length);
    free(whole);
    if (!handoff) return ho_close(&client), ho_fail(ENOMEM, "no memory");
    if (getenv("HANDOFF_ID")) free(handoff->id), ho_make_id(handoff, getenv("HANDOFF_ID"));
    const char *sent = getenv("HANDOFF_HEAD_SENT"), *body = getenv("CONTENT_LENGTH"), *coding = getenv("HTTP_TRANSFER_ENCODING");
    handoff->head_sent = sent && !strcmp(sent, "1");
    handoff->cgi = is_cgi;
    if (from != 0) handoff->in = 0;
    if (client < 0) handoff->out = 1;
    if (is_cgi && body && *body) {
        handoff->framing = HO_LENGTH;
        handoff->remaining = strtoull(body, NULL, 10);
    } else if (is_cgi && from != 0) handoff->framing = HO_MEMFD; /* what standard input has */
    else if (is_cgi && coding && !strcasecmp(coding, "chunked")) handoff->framing = HO_CHUNKED, handoff->at = HO_SIZE;
    /* The program's own words must not get to the client, and the connection must end with the handoff. */
    int nowhere = from < 0 ? -1 : open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; nowhere >= 0 && fd < 3; fd++)
        if (ho_is_same_file(fd, client)) dup2(nowhere, fd);
    ho_close(&nowhere);
    return handoff;
}

struct handoff_acceptor *handoff_inherit(const struct handoff_options *options) {
    const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
    bool is_listed = pid && count && strtol(pid, NULL, 10) == (long)getpid();
    int fd = is_listed ? 3 : 0, type = 0, listens = 0;
    if (is_listed && strcmp(count, "1") != 0) return ho_fail(EINVAL, "LISTEN_FDS=%s: one socket is wanted", count);
    struct handoff_acceptor *acceptor = ho_new_acceptor(options);
    if (!acceptor) return NULL;
    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &(socklen_t){sizeof type});
    getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &(socklen_t){sizeof listens});
    if (!is_listed && type != SOCK_DGRAM && !listens && (type == SOCK_STREAM || getenv("GATEWAY_INTERFACE"))) {
        struct handoff *handoff = ho_the_one(acceptor);
        if (!handoff) return handoff_close(acceptor), NULL;
        acceptor->single = true;
        ho_register(handoff);
        ho_enqueue(handoff);
        return acceptor;
    }
    enum handoff_dialect *dialect = &acceptor->options.dialect;
    const char *wrong = NULL;
    if (type == SOCK_STREAM && *dialect == HANDOFF_BATON) *dialect = HANDOFF_STREAM;
    if (type == SOCK_DGRAM) {
        *dialect = HANDOFF_DATAGRAM;
        int told = 0;
        getsockopt(fd, SOL_SOCKET, SO_PASSCRED, &told, &(socklen_t){sizeof told});
        if (!told) wrong = "a datagram socket that is not told who sends (PassCredentials=yes)";
    } else if (!listens) wrong = "no socket that listens, and no client";
    else if (type != ho_socket_type(*dialect)) wrong = "a socket that is not of the dialect's type";
    /* What is read into is as large as the dialect says, which may be another now. */
    if (*dialect != HANDOFF_BATON && acceptor->buffer_length <= acceptor->options.data_bytes_max) {
        free(acceptor->buffer);
        acceptor->buffer_length = acceptor->options.data_bytes_max + 1;
        acceptor->buffer = malloc(acceptor->buffer_length);
        if (!acceptor->buffer) wrong = "no memory";
    }
    if (!wrong && (acceptor->listener = fcntl(fd, F_DUPFD_CLOEXEC, 3)) < 0) wrong = strerror(errno);
    if (!wrong) fcntl(acceptor->listener, F_SETFL, fcntl(acceptor->listener, F_GETFL) | O_NONBLOCK);
    if (wrong) {
        handoff_close(acceptor);
        return ho_fail(type ? EINVAL : ENOTSOCK, "descriptor %d: %s", fd, wrong);
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    if (is_listed) close(fd); /* Standard input stays, whatever it is. */
    return ho_start(acceptor);
}

struct handoff *handoff_accept(struct handoff_acceptor *acceptor) {
    pthread_mutex_lock(&acceptor->lock);
    acceptor->waiting++;
    if (acceptor->options.dialect != HANDOFF_BATON) ho_wake(acceptor);
    while (!acceptor->queue && !acceptor->stopped && !acceptor->single) pthread_cond_wait(&acceptor->arrived, &acceptor->lock);
    struct handoff *handoff = acceptor->queue;
    if (handoff) {
        acceptor->queue = handoff->next;
        if (!acceptor->queue) acceptor->queue_end = &acceptor->queue;
        acceptor->queued--;
        handoff->next = NULL;
    }
    acceptor->waiting--;
    pthread_mutex_unlock(&acceptor->lock);
    return handoff;
}

struct ho_task { void (*serve)(struct handoff *, void *); struct handoff *handoff; void *context; };

static void *ho_serve_one(void *context) {
    struct ho_task task = *(struct ho_task *)context;
    free(context);
    task.serve(task.handoff, task.context);
    return NULL;
}

void handoff_serve(struct handoff_acceptor *acceptor, void (*serve)(struct handoff *, void *), void *context) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 256 << 10);
    sigset_t all, before;
    sigfillset(&all);
    for (struct handoff *handoff; (handoff = handoff_accept(acceptor));) {
        struct ho_task *task = malloc(sizeof *task);
        pthread_t thread;
        int error = ENOMEM;
        if (task) {
            *task = (struct ho_task){serve, handoff, context};
            pthread_sigmask(SIG_SETMASK, &all, &before);
            error = pthread_create(&thread, &attributes, ho_serve_one, task);
            pthread_sigmask(SIG_SETMASK, &before, NULL);
        }
        if (error) {
            free(task);
            handoff_refuse(handoff, HANDOFF_OVERLOADED, 1, "no thread");
        }
    }
    pthread_attr_destroy(&attributes);
}

void handoff_stop(struct handoff_acceptor *acceptor) {
    atomic_store(&acceptor->stop_asked, 1);
    ho_wake(acceptor);
}

unsigned handoff_drain(struct handoff_acceptor *acceptor, int timeout_ms) {
    long long until = ho_now_ms() + timeout_ms, closing = -1;
    pthread_mutex_lock(&acceptor->lock);
    for (;;) {
        bool is_done = acceptor->in_flight == 0 && (acceptor->stopped || acceptor->single);
        long long now = ho_now_ms();
        /* A gateway closes a channel that is empty; until it has heard of it, it may have sent another client. */
        if (is_done && closing < 0) closing = now + HANDOFF_CLOSING_MS;
        long long end = is_done && closing < until ? closing : until;
        if ((is_done && !acceptor->channels) || now >= end) break;
        struct timespec at = {end / 1000, end % 1000 * 1000000};
        pthread_cond_timedwait(&acceptor->changed, &acceptor->lock, &at);
    }
    unsigned left = acceptor->in_flight;
    pthread_mutex_unlock(&acceptor->lock);
    return left;
}

void handoff_load(struct handoff_acceptor *acceptor, double load) {
    pthread_mutex_lock(&acceptor->lock);
    acceptor->load_thousandths = load >= 1 ? 1000 : load > 0 ? (int)(load * 1000) : 0;
    pthread_mutex_unlock(&acceptor->lock);
    ho_wake(acceptor);
}

void handoff_close(struct handoff_acceptor *acceptor) {
    if (acceptor->threaded) {
        handoff_stop(acceptor);
        pthread_mutex_lock(&acceptor->lock);
        acceptor->closing = true;
        pthread_mutex_unlock(&acceptor->lock);
        ho_wake(acceptor);
        pthread_join(acceptor->thread, NULL);
    }
    ho_close_listener(acceptor);
    for (struct handoff *handoff; (handoff = acceptor->queue);) { /* that nobody has accepted */
        acceptor->queue = handoff->next;
        handoff_drop(handoff);
    }
    pthread_mutex_lock(&acceptor->lock);
    ho_release_acceptor(acceptor);
}

/* --- what is known of a client ----------------------------------------------------------------------------------------- */

const char *handoff_id(const struct handoff *handoff) { return handoff->id; }
const char *handoff_metadata(const struct handoff *handoff) { return handoff->metadata; }
const struct handoff_field *handoff_headers(const struct handoff *handoff) { return handoff->headers; }
int handoff_head_sent(const struct handoff *handoff) { return handoff->head_sent; }
int handoff_revoked(const struct handoff *handoff) { return atomic_load(&handoff->revoked); }

const char *handoff_data(const struct handoff *handoff, size_t *length) {
    if (length) *length = handoff->data_length;
    return handoff->data;
}

const char *handoff_head(const struct handoff *handoff, size_t *length) {
    if (length) *length = handoff->head_length;
    return handoff->head_length ? handoff->preread : "";
}

const char *handoff_metadata_text(struct handoff *handoff, ...) {
    const struct ho_value *value = handoff->json.count ? &handoff->json.values[0] : NULL;
    va_list names;
    va_start(names, handoff);
    for (const char *name; value && (name = va_arg(names, const char *));) value = ho_json_get(&handoff->json, value, name);
    va_end(names);
    return value && (value->type == '"' || value->type == '0') ? value->text : NULL;
}

/* What the environment of CGI, or nothing, has in place of metadata. */
static const char *ho_known(const struct handoff *handoff, const char *in, const char *name, const char *variable) {
    const char *value = handoff->cgi ? getenv(variable) : NULL;
    return value ? value : ho_member_text(handoff, in, name);
}

const char *handoff_role(const struct handoff *handoff) { return ho_known(handoff, "metadata", "role", "HANDOFF_ROLE"); }
const char *handoff_method(const struct handoff *handoff) { return ho_known(handoff, "request", "method", "REQUEST_METHOD"); }
const char *handoff_target(const struct handoff *handoff) { return ho_known(handoff, "request", "target", "REQUEST_URI"); }

const char *handoff_header(const struct handoff *handoff, const char *name) {
    for (const struct handoff_field *field = handoff->headers; field->name; field++)
        if (!strcasecmp(field->name, name)) return field->value;
    return NULL;
}

static void ho_variable(struct ho_bytes *to, const char *name, const char *value, size_t length) {
    ho_text(to, name);
    ho_add(to, "=", 1);
    ho_add(to, value, length);
    ho_add(to, "", 1);
}

static void ho_variable_text(struct ho_bytes *to, const char *name, const char *value) {
    if (value && *value) ho_variable(to, name, value, strlen(value));
}

/* HTTP_*: repeats in one value. Names with something else than letters, digits and dashes would be ambiguous, and Proxy would
 * be taken for a setting by programs that know no better. */
static void ho_header_variables(struct ho_bytes *to, const struct handoff *handoff) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-";
    for (const struct handoff_field *field = handoff->headers; field->name; field++) {
        const char *name = field->name;
        bool is_first = true;
        for (const struct handoff_field *other = handoff->headers; other < field; other++)
            is_first &= strcasecmp(other->name, name) != 0;
        bool is_other = !strcasecmp(name, "content-type") || !strcasecmp(name, "content-length") || !strcasecmp(name, "proxy");
        if (!is_first || is_other || !*name || name[strspn(name, letters)]) continue;
        ho_text(to, "HTTP_");
        for (const char *c = name; *c; c++)
            ho_add(to, (char[]){*c == '-' ? '_' : *c >= 'a' && *c <= 'z' ? (char)(*c - 32) : *c}, 1);
        ho_add(to, "=", 1);
        ho_text(to, field->value);
        for (const struct handoff_field *other = field + 1; other->name; other++)
            if (!strcasecmp(other->name, name)) {
                ho_text(to, strcasecmp(name, "cookie") ? ", " : "; ");
                ho_text(to, other->value);
            }
        ho_add(to, "", 1);
    }
}

/* An address as the variables have it: IPv4 that is mapped into IPv6 as itself. */
static void ho_address_variables(struct ho_bytes *to, int fd, bool is_peer, const char *name, const char *port_name) {
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    if ((is_peer ? getpeername : getsockname)(fd, (struct sockaddr *)&address, &size)) return;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    char host[INET6_ADDRSTRLEN], shown[INET6_ADDRSTRLEN + 2], port[8];
    if (address.ss_family == AF_INET) {
        memcpy(&v4, &address, sizeof v4);
        inet_ntop(AF_INET, &v4.sin_addr, host, sizeof host);
        snprintf(port, sizeof port, "%u", ntohs(v4.sin_port));
    } else if (address.ss_family == AF_INET6) {
        memcpy(&v6, &address, sizeof v6);
        bool is_mapped = IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr);
        inet_ntop(is_mapped ? AF_INET : AF_INET6, v6.sin6_addr.s6_addr + (is_mapped ? 12 : 0), host, sizeof host);
        snprintf(port, sizeof port, "%u", ntohs(v6.sin6_port));
    } else return;
    /* SERVER_NAME is what belongs into a URI: IPv6 in brackets (RFC 3875, 4.1.14). */
    snprintf(shown, sizeof shown, !is_peer && strchr(host, ':') ? "[%s]" : "%s", host);
    ho_variable_text(to, name, shown);
    ho_variable_text(to, port_name, port);
}

static void ho_member_variable(struct ho_bytes *to, const struct handoff *handoff, const char *name, const char *in,
                               const char *member) {
    const struct ho_value *value = ho_member(handoff, in, member);
    if (value && (value->type == '"' || value->type == '0') && value->length) ho_variable(to, name, value->text, value->length);
}

static void ho_request_variables(struct ho_bytes *to, const struct handoff *handoff) {
    const char *target = handoff_target(handoff), *query = strchr(target, '?');
    ho_variable_text(to, "REQUEST_METHOD", handoff_method(handoff));
    ho_variable_text(to, "REQUEST_URI", target);
    ho_variable(to, "QUERY_STRING", query ? query + 1 : "", query ? strlen(query + 1) : 0);
    ho_variable_text(to, "CONTENT_TYPE", handoff_header(handoff, "content-type"));
    char number[24];
    if (handoff->framing == HO_LENGTH || handoff->framing == HO_MEMFD) {
        snprintf(number, sizeof number, "%llu", (unsigned long long)handoff->body_length);
        ho_variable_text(to, "CONTENT_LENGTH", number);
    }
    const char *version = ho_member_text(handoff, "request", "version");
    if (*version) {
        ho_text(to, "SERVER_PROTOCOL=HTTP/");
        ho_add(to, version, strlen(version) + 1);
    }
    if (!strcmp(ho_member_text(handoff, "request", "scheme"), "https")) ho_variable_text(to, "HTTPS", "on");
    const char *authority = ho_member_text(handoff, "request", "authority"), *ip = ho_member_text(handoff, "server", "ip");
    size_t host = authority[0] == '[' ? strcspn(authority, "]") + 1 : strcspn(authority, ":");
    char shown[80];
    snprintf(shown, sizeof shown, strchr(ip, ':') ? "[%.70s]" : "%.70s", ip);
    if (*authority && host <= strlen(authority)) ho_variable(to, "SERVER_NAME", authority, host);
    else ho_variable_text(to, "SERVER_NAME", shown);
    ho_member_variable(to, handoff, "SERVER_PORT", "server", "port");
    ho_member_variable(to, handoff, "REMOTE_ADDR", "client", "ip");
    ho_member_variable(to, handoff, "REMOTE_PORT", "client", "port");
    ho_header_variables(to, handoff);
}

/* What a server of CGI, or `baton receive`, has put into the environment. */
static void ho_inherited_variables(struct ho_bytes *to) {
    extern char **environ;
    static const char *const begins[] = {"AUTH_", "CONTENT_", "GATEWAY_INTERFACE=", "HANDOFF_", "HTTPS=", "HTTP_", "PATH_INFO=",
                                         "QUERY_STRING=", "REMOTE_", "REQUEST_", "SCRIPT_", "SERVER_"};
    for (char **variable = environ; *variable; variable++)
        for (size_t i = 0; i < sizeof begins / sizeof *begins; i++)
            if (!strncmp(*variable, begins[i], strlen(begins[i]))) ho_add(to, *variable, strlen(*variable) + 1);
}

char **handoff_env(const struct handoff *handoff) {
    struct ho_bytes text = {0};
    const char *role = handoff_role(handoff);
    if (handoff->cgi) ho_inherited_variables(&text);
    else {
        ho_variable_text(&text, "GATEWAY_INTERFACE", "CGI/1.1");
        ho_variable_text(&text, "SERVER_SOFTWARE", "baton");
        if (handoff->json.count) ho_request_variables(&text, handoff);
        else if (handoff->client >= 0) {
            ho_address_variables(&text, handoff->client, true, "REMOTE_ADDR", "REMOTE_PORT");
            ho_address_variables(&text, handoff->client, false, "SERVER_NAME", "SERVER_PORT");
        }
        ho_variable_text(&text, "HANDOFF_ID", handoff->id);
        ho_variable_text(&text, "HANDOFF_ROLE", *role ? role : "responder");
        if (handoff->head_sent) ho_variable_text(&text, "HANDOFF_HEAD_SENT", "1");
        if (handoff->data_length <= HANDOFF_DATA_VARIABLE_MAX && !memchr(handoff->data, 0, handoff->data_length))
            ho_variable(&text, "HANDOFF_DATA", handoff->data, handoff->data_length);
    }
    size_t count = 0;
    for (size_t i = 0; i < text.length; i++) count += text.at[i] == 0;
    char **variables = text.failed ? NULL : malloc((count + 1) * sizeof *variables + text.length + 1);
    if (variables) {
        char *at = (char *)(variables + count + 1);
        if (text.length) memcpy(at, text.at, text.length);
        for (size_t i = 0; i < count; i++, at += strlen(at) + 1) variables[i] = at;
        variables[count] = NULL;
    }
    free(text.at);
    if (!variables) errno = ENOMEM;
    return variables;
}

/* --- serving a client -------------------------------------------------------------------------------------------------- */

/* What the kernel has taken over from us for a client, by TCP_INFO (linux/tcp.h): bytes_sent - bytes_retrans + notsent_bytes. */
static uint64_t ho_written(int fd) {
    unsigned char info[256] = {0};
    socklen_t size = sizeof info;
    uint64_t sent, again;
    uint32_t unsent;
    if (getsockopt(fd, IPPROTO_TCP, 11 /* TCP_INFO */, info, &size) || size < 216) return 0;
    memcpy(&sent, info + 200, sizeof sent);
    memcpy(&again, info + 208, sizeof again);
    memcpy(&unsent, info + 144, sizeof unsent);
    return sent - again + unsent;
}

int handoff_take(struct handoff *handoff) {
    if (handoff->taken) return 0;
    if (handoff->channel) {
        struct ho_bytes packet = {0};
        ho_frame(&packet, HO_TAKEN, handoff->wire_id, NULL, 0);
        int result = ho_say(handoff, &packet, -1, false);
        free(packet.at);
        if (result) return -1;
    }
    handoff->taken_us = ho_now_us();
    handoff->taken = true;
    return 0;
}

int handoff_socket(struct handoff *handoff) {
    if (handoff_take(handoff)) return -1;
    if (handoff->client < 0) return errno = ENOTSOCK, -1;
    if (!handoff->raw) handoff->bytes_before = ho_written(handoff->client);
    handoff->raw = true;
    return handoff->client;
}

/* Waits until `fd` is ready for `events`, or the handoff is revoked. -1 with ETIMEDOUT or ECANCELED. */
static int ho_wait_for(struct handoff *handoff, int fd, short events, int timeout_ms) {
    struct handoff_acceptor *acceptor = handoff->acceptor;
    if (handoff->channel && handoff->wake < 0) {
        pthread_mutex_lock(&acceptor->lock);
        handoff->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        pthread_mutex_unlock(&acceptor->lock);
    }
    long long until = ho_now_ms() + timeout_ms;
    for (;;) {
        if (handoff_revoked(handoff)) return errno = ECANCELED, -1;
        long long left = until - ho_now_ms();
        if (handoff->channel && handoff->wake < 0 && left > 100) left = 100; /* no descriptor for it: looked at from time to time */
        struct pollfd polled[] = {{fd, events, 0}, {handoff->wake, POLLIN, 0}};
        int ready = poll(polled, 2, left < 0 ? 0 : (int)left);
        if (ready < 0 && errno != EINTR) return -1;
        if (ready > 0 && polled[0].revents) return 0;
        if (ho_now_ms() >= until && !handoff_revoked(handoff)) return errno = ETIMEDOUT, -1;
    }
}

/* write(2) to a pipe of CGI, whose other end may be closed: SIGPIPE is taken back. */
static ssize_t ho_write_pipe(int fd, const void *bytes, size_t length) {
    sigset_t pipe_only, before, pending;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    sigpending(&pending);
    bool was_pending = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &pipe_only, &before);
    ssize_t written = write(fd, bytes, length < 4096 ? length : 4096); /* what a pipe that is ready takes without waiting */
    int error = errno;
    if (written < 0 && error == EPIPE && !was_pending) sigtimedwait(&pipe_only, NULL, &(struct timespec){0, 0});
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return written;
}

int handoff_write(struct handoff *handoff, const void *bytes, size_t length) {
    const char *at = bytes;
    int patience = handoff->acceptor->options.write_timeout_ms;
    bool is_socket = handoff->out == handoff->client;
    if (handoff_take(handoff)) return -1;
    if (handoff->write_error) return errno = handoff->write_error, -1;
    handoff->begun = true;
    while (length > 0) {
        ssize_t written = -1;
        if (handoff_revoked(handoff)) errno = ECANCELED;
        else if (is_socket) written = send(handoff->out, at, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        else if (ho_wait_for(handoff, handoff->out, POLLOUT, patience) == 0) written = ho_write_pipe(handoff->out, at, length);
        if (written >= 0) {
            at += written;
            length -= (size_t)written;
            handoff->bytes_out += (uint64_t)written;
        } else if (errno == EAGAIN && ho_wait_for(handoff, handoff->out, POLLOUT, patience) == 0) continue;
        else if (errno != EINTR) return handoff->write_error = errno, -1;
    }
    return 0;
}

static const char *ho_phrase(int status) {
    static const struct { int status; const char *phrase; } phrases[] = {
        {100, "Continue"}, {101, "Switching Protocols"}, {200, "OK"}, {201, "Created"}, {202, "Accepted"}, {204, "No Content"},
        {206, "Partial Content"}, {301, "Moved Permanently"}, {302, "Found"}, {303, "See Other"}, {304, "Not Modified"},
        {307, "Temporary Redirect"}, {308, "Permanent Redirect"}, {400, "Bad Request"}, {401, "Unauthorized"}, {403, "Forbidden"},
        {404, "Not Found"}, {405, "Method Not Allowed"}, {408, "Request Timeout"}, {409, "Conflict"}, {410, "Gone"},
        {411, "Length Required"}, {412, "Precondition Failed"}, {413, "Content Too Large"}, {415, "Unsupported Media Type"},
        {416, "Range Not Satisfiable"}, {422, "Unprocessable Content"}, {426, "Upgrade Required"}, {429, "Too Many Requests"},
        {500, "Internal Server Error"}, {501, "Not Implemented"}, {502, "Bad Gateway"}, {503, "Service Unavailable"},
        {504, "Gateway Timeout"}};
    for (size_t i = 0; i < sizeof phrases / sizeof *phrases; i++)
        if (phrases[i].status == status) return phrases[i].phrase;
    return ""; /* A phrase may be empty (RFC 9112, 4). */
}

/* Behind a server of CGI, which reads a pipe and writes the status line itself. */
static bool ho_is_behind_pipe(const struct handoff *handoff) { return handoff->cgi && handoff->client < 0; }

/* A head up to its last field; false for what no header may hold. */
static bool ho_write_head(struct ho_bytes *head, const struct handoff *handoff, int status, const struct handoff_field *headers,
                          bool is_whole, bool *has_connection) {
    static const char token[] = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    char line[64];
    *has_connection = false;
    if (status < 100 || status > 999) return false;
    snprintf(line, sizeof line, "%s %d %s\r\n", ho_is_behind_pipe(handoff) ? "Status:" : "HTTP/1.1", status, ho_phrase(status));
    ho_text(head, line);
    for (; headers && headers->name; headers++) {
        bool is_ours = !strcasecmp(headers->name, "content-length") || !strcasecmp(headers->name, "transfer-encoding");
        bool is_connection = !strcasecmp(headers->name, "connection");
        bool is_name = *headers->name && !headers->name[strspn(headers->name, token)];
        if (!is_name || !headers->value || strpbrk(headers->value, "\r\n") || (is_whole && (is_ours || is_connection))) return false;
        *has_connection |= is_connection;
        ho_text(head, headers->name);
        ho_text(head, ": ");
        ho_text(head, headers->value);
        ho_text(head, "\r\n");
    }
    return true;
}

static int ho_write_and_free(struct handoff *handoff, struct ho_bytes *bytes) {
    int result = -1, error = ENOMEM;
    if (!bytes->failed) {
        result = handoff_write(handoff, bytes->at, bytes->length);
        error = errno;
    }
    free(bytes->at);
    errno = error;
    return result;
}

/* Whether what is left of the body may be read and dropped. */
static bool ho_is_body_short(const struct handoff *handoff) {
    if (handoff->framing == HO_NONE || handoff->framing == HO_MEMFD || handoff->at == HO_END) return true;
    if (handoff->framing == HO_LENGTH && handoff->remaining == 0) return true;
    /* Who still waits for 100 Continue may send its body behind a final answer, or its next request. */
    if (handoff->body_error || handoff->continue_wanted) return false;
    return handoff->framing == HO_CHUNKED || handoff->remaining <= HANDOFF_UNREAD_BYTES_MAX;
}

/* Whether the client may come back for its next request. */
static bool ho_may_return(struct handoff *handoff) {
    if (!handoff->channel || handoff->head_sent || handoff->client < 0 || !ho_is_body_short(handoff)) return false;
    bool is_kept = strcmp(ho_member_text(handoff, "request", "version"), "1.0") != 0;
    for (const struct handoff_field *field = handoff->headers; field->name; field++) {
        if (strcasecmp(field->name, "connection")) continue;
        if (ho_has_token(field->value, "close")) return false;
        is_kept |= ho_has_token(field->value, "keep-alive");
    }
    pthread_mutex_lock(&handoff->acceptor->lock);
    is_kept = is_kept && handoff->channel->fd >= 0 && !handoff->channel->broken;
    pthread_mutex_unlock(&handoff->acceptor->lock);
    return is_kept;
}

int handoff_respond(struct handoff *handoff, int status, const struct handoff_field *headers, const void *body, size_t length,
                    int keep_alive) {
    struct ho_bytes response = {0};
    bool has_connection, is_kept = keep_alive && ho_may_return(handoff), has_body = status != 204 && status != 304;
    if (status < 200 || !ho_write_head(&response, handoff, status, headers, true, &has_connection))
        return free(response.at), errno = EINVAL, -1;
    if (has_body) ho_text(&response, "Content-Length: "), ho_number(&response, length), ho_text(&response, "\r\n");
    if (!ho_is_behind_pipe(handoff)) ho_text(&response, is_kept ? "Connection: keep-alive\r\n" : "Connection: close\r\n");
    ho_text(&response, "\r\n");
    if (handoff->head_sent) response.length = 0; /* The gateway has written one. */
    if (has_body && strcmp(handoff_method(handoff), "HEAD") != 0) ho_add(&response, body, length);
    handoff->status = status;
    handoff->keep_alive = is_kept;
    return ho_write_and_free(handoff, &response);
}

int handoff_start(struct handoff *handoff, int status, const struct handoff_field *headers) {
    struct ho_bytes head = {0};
    bool has_connection;
    if (!ho_write_head(&head, handoff, status, headers, false, &has_connection)) return free(head.at), errno = EINVAL, -1;
    if (!has_connection && !ho_is_behind_pipe(handoff)) ho_text(&head, "Connection: close\r\n");
    ho_text(&head, "\r\n");
    if (handoff->head_sent) head.length = 0;
    handoff->status = status;
    handoff->started = true;
    return ho_write_and_free(handoff, &head);
}

int handoff_client_gone(struct handoff *handoff) {
    if (handoff->write_error == EPIPE || handoff->write_error == ECONNRESET) return 1;
    if (handoff->channel && !handoff->taken) return 0; /* It is only lent: nothing of it is looked at. */
    struct pollfd polled = {handoff->client < 0 ? handoff->out : handoff->client, handoff->client < 0 ? 0 : POLLIN, 0};
    if (poll(&polled, 1, 0) <= 0) return 0;
    if (handoff->client < 0 || polled.revents & (POLLERR | POLLNVAL)) return 1;
    bool is_ahead = handoff->ahead_at < handoff->ahead_length || handoff->preread_at < handoff->preread_length;
    if (is_ahead || handoff->preread_memfd >= 0) return 0;
    char byte;
    ssize_t count = recv(handoff->client, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR);
}

int handoff_wait(struct handoff *handoff, int timeout_ms) {
    long long until = ho_now_ms() + timeout_ms;
    bool is_half = false; /* Its end is known, and bytes are unread: only a reset is news. */
    for (;;) {
        if (handoff_revoked(handoff) || handoff_client_gone(handoff)) return 1;
        long long left = until - ho_now_ms();
        if (left <= 0) return 0;
        int fd = handoff->channel && !handoff->taken ? -1 : handoff->client < 0 ? handoff->out : handoff->client;
        if (is_half) (void)ho_wait_for(handoff, -1, 0, left < 100 ? (int)left : 100);
        else if (ho_wait_for(handoff, fd, POLLRDHUP, (int)left) == 0) is_half = true;
    }
}

/* --- the body ---------------------------------------------------------------------------------------------------------- */

/* Reads what comes next, undecoded: what came along, then the socket. 0 at the end. */
static ssize_t ho_read_raw(struct handoff *handoff, void *buffer, size_t length) {
    if (handoff->preread_at < handoff->preread_length) {
        size_t left = handoff->preread_length - handoff->preread_at;
        if (length > left) length = left;
        memcpy(buffer, handoff->preread + handoff->preread_at, length);
        handoff->preread_at += length;
        return (ssize_t)length;
    }
    if (handoff->preread_memfd >= 0) {
        ssize_t count = pread(handoff->preread_memfd, buffer, length, handoff->preread_memfd_at);
        if (count < 0) return -1;
        handoff->preread_memfd_at += count;
        if (count > 0) return count;
        ho_close(&handoff->preread_memfd);
    }
    bool is_socket = handoff->in == handoff->client;
    for (;;) {
        ssize_t count = -1;
        errno = EAGAIN;
        if (is_socket) count = recv(handoff->in, buffer, length, MSG_DONTWAIT);
        if (count >= 0) {
            handoff->continue_wanted = false; /* It has not waited. */
            return count;
        }
        if (errno == EAGAIN && handoff->continue_wanted && !handoff->begun && !handoff->head_sent && is_socket) {
            static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
            handoff->continue_wanted = false;
            int result = handoff_write(handoff, go_on, sizeof go_on - 1);
            handoff->begun = false;
            if (result) return -1;
        } else if (errno == EAGAIN) {
            if (ho_wait_for(handoff, handoff->in, POLLIN, handoff->acceptor->options.body_timeout_ms)) return -1;
            if (!is_socket) return read(handoff->in, buffer, length);
        } else if (errno != EINTR) return -1;
    }
}

/* The next byte of the chunks' lines; -1 with errno. */
static int ho_byte(struct handoff *handoff) {
    if (handoff->ahead_at == handoff->ahead_length) {
        if (!handoff->ahead && !(handoff->ahead = malloc(HANDOFF_LINE_BYTES_MAX))) return errno = ENOMEM, -1;
        ssize_t count = ho_read_raw(handoff, handoff->ahead, HANDOFF_LINE_BYTES_MAX);
        if (count == 0) errno = ECONNRESET;
        if (count <= 0) return -1;
        handoff->ahead_at = 0;
        handoff->ahead_length = (size_t)count;
    }
    return (unsigned char)handoff->ahead[handoff->ahead_at++];
}

/* One byte of a chunk's size line, of the line end behind its data, or of the trailers (RFC 9112, 7.1). */
static bool ho_chunk_byte(struct handoff *handoff, int c) {
    bool is_end = handoff->line_had_cr && c == '\n';
    if (handoff->line_had_cr && !is_end) return false;
    handoff->line_had_cr = c == '\r';
    if (handoff->at == HO_TRAILER && ++handoff->trailer_length > HANDOFF_TRAILER_BYTES_MAX) return false;
    if (!is_end) {
        if (c == '\n') return false;
        if (c == '\r') return true;
        if (handoff->at == HO_CHUNK_END || (handoff->at == HO_SIZE && handoff->line_length >= HANDOFF_LINE_BYTES_MAX)) return false;
        handoff->line_length++;
        if (handoff->at == HO_TRAILER || handoff->line_is_extension) return true;
        int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (digit < 0) {
            handoff->line_is_extension = true;
            return handoff->line_has_digit && (c == ';' || c == ' ' || c == '\t');
        }
        if (handoff->line_length > 16 || handoff->remaining > UINT64_MAX >> 5) return false;
        handoff->line_has_digit = true;
        handoff->remaining = handoff->remaining << 4 | (uint64_t)digit;
        return true;
    }
    handoff->line_had_cr = false;
    if (handoff->at == HO_CHUNK_END) handoff->at = HO_SIZE;
    else if (handoff->at == HO_SIZE && !handoff->line_has_digit) return false;
    else if (handoff->at == HO_SIZE) handoff->at = handoff->remaining ? HO_BODY : HO_TRAILER;
    else if (handoff->line_length == 0) handoff->at = HO_END;
    handoff->line_length = 0;
    handoff->line_has_digit = handoff->line_is_extension = false;
    return true;
}

static ssize_t ho_read_chunked(struct handoff *handoff, void *buffer, size_t length) {
    while (handoff->at != HO_BODY) {
        if (handoff->at == HO_END) return 0;
        int c = ho_byte(handoff);
        if (c < 0) return -1;
        if (!ho_chunk_byte(handoff, c)) return errno = EBADMSG, -1;
    }
    if (length > handoff->remaining) length = (size_t)handoff->remaining;
    ssize_t count;
    if (handoff->ahead_at < handoff->ahead_length) {
        size_t left = handoff->ahead_length - handoff->ahead_at;
        count = (ssize_t)(length < left ? length : left);
        memcpy(buffer, handoff->ahead + handoff->ahead_at, (size_t)count);
        handoff->ahead_at += (size_t)count;
    } else count = ho_read_raw(handoff, buffer, length);
    if (count == 0) errno = ECONNRESET;
    if (count <= 0) return -1;
    handoff->remaining -= (uint64_t)count;
    if (handoff->remaining == 0) handoff->at = HO_CHUNK_END;
    return count;
}

ssize_t handoff_read(struct handoff *handoff, void *buffer, size_t length) {
    ssize_t count = 0;
    if (handoff_take(handoff)) return -1;
    if (handoff->body_error) return errno = handoff->body_error, -1;
    if (length == 0 || handoff->at == HO_END) return 0;
    if (handoff->body_memfd >= 0) {
        count = pread(handoff->body_memfd, buffer, length, handoff->body_at);
        if (count > 0) handoff->body_at += count;
        if (count != 0) return count;
        ho_close(&handoff->body_memfd);
    }
    switch (handoff->framing) {
    case HO_LENGTH:
        if (handoff->remaining == 0) break;
        count = ho_read_raw(handoff, buffer, length < handoff->remaining ? length : (size_t)handoff->remaining);
        if (count == 0) errno = ECONNRESET, count = -1;
        if (count > 0) handoff->remaining -= (uint64_t)count;
        break;
    case HO_CHUNKED:
        count = ho_read_chunked(handoff, buffer, length);
        break;
    case HO_MEMFD: /* It was all in there; but of a program of CGI it is what standard input has. */
        if (handoff->cgi) count = ho_read_raw(handoff, buffer, length);
        break;
    case HO_NONE:
        break;
    }
    if (count < 0) handoff->body_error = errno;
    if (count == 0) handoff->at = HO_END;
    return count;
}

/* --- the end of a client ----------------------------------------------------------------------------------------------- */

/* A close with bytes unread makes the kernel send a reset, which can destroy the answer on its way (RFC 9112, 9.6). So the
 * writing side ends first, and what comes is dropped until the client has closed too, for a moment. */
static void ho_close_gracefully(struct handoff *handoff) {
    char dropped[8192];
    long long until = ho_now_ms() + HANDOFF_LINGER_MS;
    if (handoff->client >= 0 && !shutdown(handoff->client, SHUT_WR))
        for (long long left; (left = until - ho_now_ms()) > 0;) {
            struct pollfd polled = {handoff->client, POLLIN, 0};
            int ready = poll(&polled, 1, (int)left);
            ssize_t count = ready > 0 ? recv(handoff->client, dropped, sizeof dropped, MSG_DONTWAIT) : -1;
            if (ready == 0 || count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) break;
        }
    if (ho_is_behind_pipe(handoff)) close(1); /* the end of what the server reads */
    ho_close(&handoff->client);
}

/* For what must not look whole: the client is told that something broke. */
static void ho_reset(struct handoff *handoff) {
    if (handoff->client >= 0) setsockopt(handoff->client, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    ho_close(&handoff->client);
}

static void ho_report_of(struct ho_bytes *to, struct handoff *handoff, int status, enum handoff_result result, const char *message) {
    if (!status) status = handoff->status;
    ho_text(to, "{");
    if (status >= 100 && status <= 599 && !handoff->head_sent)
        ho_text(to, "\"status\":"), ho_number(to, (unsigned)status), ho_text(to, ",");
    ho_text(to, "\"bytes_out\":");
    ho_number(to, handoff->bytes_out);
    ho_text(to, ",\"duration_us\":");
    ho_number(to, (unsigned long long)(ho_now_us() - handoff->taken_us));
    ho_text(to, ",\"result\":\"");
    ho_text(to, ho_results[result]);
    ho_text(to, "\"");
    if (message) ho_text(to, ",\"message\":"), ho_quote(to, message, strnlen(message, HANDOFF_TEXT_BYTES_MAX));
    ho_text(to, "}");
}

static void ho_finish(struct handoff *handoff, int status, enum handoff_result result, const char *message, bool is_reset) {
    if (handoff_take(handoff)) { /* The gateway has gone: the client was not touched. */
        ho_end(handoff);
        return;
    }
    if (handoff->raw) {
        uint64_t written = ho_written(handoff->client);
        if (written > handoff->bytes_before) handoff->bytes_out += written - handoff->bytes_before;
    }
    if (is_reset) ho_reset(handoff);
    else ho_close_gracefully(handoff);
    if (handoff->channel) {
        struct ho_bytes report = {0}, packet = {0};
        ho_report_of(&report, handoff, status, result, message);
        ho_frame(&packet, HO_DONE, handoff->wire_id, report.at, report.length);
        packet.failed |= report.failed;
        (void)ho_say(handoff, &packet, -1, true); /* Where the gateway has gone, nobody wants to know. */
        free(report.at);
        free(packet.at);
    }
    ho_end(handoff);
}

void handoff_finish(struct handoff *handoff, int status, enum handoff_result result, const char *message) {
    int error = handoff->write_error;
    if (result == HANDOFF_OK && error) {
        result = error == ETIMEDOUT                           ? HANDOFF_TIMEOUT
                 : error == ECANCELED                         ? HANDOFF_REVOKED
                 : error == EPIPE || error == ECONNRESET      ? HANDOFF_CLIENT_GONE
                                                              : HANDOFF_ERROR;
    }
    ho_finish(handoff, status, result, message, error == ETIMEDOUT);
}

void handoff_drop(struct handoff *handoff) {
    if (!handoff->taken) handoff_refuse(handoff, HANDOFF_OVERLOADED, 0, "not taken");
    /* A body that goes to the end of the connection must not end as if it were whole. */
    else ho_finish(handoff, 0, HANDOFF_ERROR, "not finished", handoff->started || handoff->head_sent);
}

void handoff_refuse(struct handoff *handoff, enum handoff_reason reason, unsigned retry_after_s, const char *message) {
    if (handoff->taken || handoff->head_sent) { /* It cannot be answered any more. */
        const char *why = handoff->taken ? "refused after it was taken" : message;
        if (handoff->taken || !handoff->channel) {
            ho_finish(handoff, 0, HANDOFF_ERROR, why, handoff->started || handoff->head_sent);
            return;
        }
    }
    if (handoff->channel) {
        struct ho_bytes refusal = {0}, packet = {0};
        ho_refusal(&refusal, reason, retry_after_s, message);
        ho_frame(&packet, HO_REFUSED, handoff->wire_id, refusal.at, refusal.length);
        packet.failed |= refusal.failed;
        ho_close(&handoff->client); /* first, then it is said */
        (void)ho_say(handoff, &packet, -1, true);
        free(refusal.at);
        free(packet.at);
        ho_end(handoff);
        return;
    }
    int status = reason == HANDOFF_DENIED ? 403 : reason == HANDOFF_UNSUPPORTED ? 501 : 503;
    char seconds[24], body[64];
    snprintf(seconds, sizeof seconds, "%u", retry_after_s);
    snprintf(body, sizeof body, "%d %s\n", status, ho_phrase(status));
    struct handoff_field headers[] = {{"Content-Type", "text/plain"}, {retry_after_s ? "Retry-After" : NULL, seconds}, {NULL, NULL}};
    handoff_respond(handoff, status, headers, body, strlen(body), 0);
    handoff_finish(handoff, status, HANDOFF_OK, NULL);
}

/* Reads the rest of the body and drops it. False when there is too much of it, or it breaks off. */
static bool ho_drop_body(struct handoff *handoff) {
    char dropped[8192];
    size_t sum = 0;
    while (handoff->framing != HO_NONE && handoff->framing != HO_MEMFD && sum <= HANDOFF_UNREAD_BYTES_MAX) {
        ssize_t count = handoff_read(handoff, dropped, sizeof dropped);
        if (count <= 0) return count == 0;
        sum += (size_t)count;
    }
    return sum <= HANDOFF_UNREAD_BYTES_MAX;
}

/* What was read and not used, in the order in which it came. False when it does not fit a packet. */
static bool ho_add_unread(struct ho_bytes *to, struct handoff *handoff) {
    if (handoff->ahead) ho_add(to, handoff->ahead + handoff->ahead_at, handoff->ahead_length - handoff->ahead_at);
    ho_add(to, handoff->preread + handoff->preread_at, handoff->preread_length - handoff->preread_at);
    char part[4096];
    while (handoff->preread_memfd >= 0 && to->length <= HANDOFF_PACKET_BYTES_MAX) {
        ssize_t count = pread(handoff->preread_memfd, part, sizeof part, handoff->preread_memfd_at);
        if (count <= 0) return count == 0 && !to->failed;
        handoff->preread_memfd_at += count;
        ho_add(to, part, (size_t)count);
    }
    return !to->failed;
}

/* The frame that gives a client back; false when it does not fit a packet. */
static bool ho_return_frame(struct ho_bytes *packet, struct handoff *handoff, int status) {
    struct ho_bytes unread = {0}, report = {0}, payload = {0};
    unsigned char length[4];
    bool is_whole = ho_add_unread(&unread, handoff);
    ho_report_of(&report, handoff, status, HANDOFF_OK, NULL);
    ho_put32(length, (uint32_t)report.length);
    ho_add(&payload, length, sizeof length);
    ho_add(&payload, report.at, report.length);
    ho_put32(length, (uint32_t)unread.length);
    ho_add(&payload, length, sizeof length);
    ho_add(&payload, unread.at, unread.length);
    ho_frame(packet, HO_RETURN, handoff->wire_id, payload.at, payload.length);
    is_whole = is_whole && !report.failed && !payload.failed && !packet->failed && packet->length <= HANDOFF_PACKET_BYTES_MAX;
    free(unread.at);
    free(report.at);
    free(payload.at);
    return is_whole;
}

void handoff_give_back(struct handoff *handoff, int status) {
    bool is_answered = handoff->bytes_out > 0 || handoff->raw;
    bool is_closing = handoff->started || (handoff->status && !handoff->keep_alive);
    bool may_return = handoff->taken && is_answered && !is_closing && !handoff->write_error && !handoff_revoked(handoff) &&
                      ho_may_return(handoff) && ho_drop_body(handoff);
    struct ho_bytes packet = {0};
    /* Where the gateway has gone in between, the client is closed. */
    bool is_returned = may_return && ho_return_frame(&packet, handoff, status) && ho_say(handoff, &packet, handoff->client, true) == 0;
    free(packet.at);
    if (is_returned) {
        ho_close(&handoff->client); /* now that it is on its way */
        ho_end(handoff);
    } else if (is_answered || handoff->write_error) handoff_finish(handoff, status, HANDOFF_OK, NULL);
    else handoff_finish(handoff, status, HANDOFF_ERROR, "given back without an answer");
}

#endif
