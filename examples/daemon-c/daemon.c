/* A daemon that takes handed-over clients and answers each by its request's path: what the tests ask of a daemon in any
 * language, and an example of handoff.h. daemon SOCKET [baton|seqpacket|stream|fdpass|datagram] [--interval MS] [--in-flight-max N] */
#define _GNU_SOURCE
#define HANDOFF_IMPLEMENTATION
#include "handoff.h"

static int interval_ms = 100;
static struct handoff_acceptor *acceptor;

static const struct handoff_field text[] = {{"Content-Type", "text/plain"}, {NULL, NULL}};
static const struct handoff_field json[] = {{"Content-Type", "application/json"}, {NULL, NULL}};
static const struct handoff_field bytes[] = {{"Content-Type", "application/octet-stream"}, {NULL, NULL}};
static const struct handoff_field events[] = {{"Content-Type", "text/event-stream"}, {"Cache-Control", "no-store"}, {NULL, NULL}};

/* A parameter of the target's query, as it stands; "" if it is not there. */
static const char *parameter(struct handoff *client, const char *name, char *value, size_t room) {
    const char *query = strchr(handoff_target(client), '?');
    size_t length = strlen(name);
    *value = 0;
    while (query) {
        query++;
        if (!strncmp(query, name, length) && query[length] == '=')
            snprintf(value, room, "%.*s", (int)strcspn(query + length + 1, "&"), query + length + 1);
        query = strchr(query, '&');
    }
    return value;
}

/* Ten events at an interval; a failed write says that the client has left or is revoked, and finish tells the gateway. */
static void stream(struct handoff *client) {
    size_t length;
    const char *data = handoff_data(client, &length);
    char *quoted = handoff_json_quote(data, length), event[64];
    int failed = handoff_start(client, 200, events) || !quoted || handoff_write(client, "data: {\"n\":1,\"text\":", 20) ||
                 handoff_write(client, quoted, strlen(quoted)) || handoff_write(client, "}\n\n", 3);
    for (int n = 2; n <= 10 && !failed; n++) {
        if (handoff_wait(client, interval_ms)) {
            handoff_finish(client, 200, handoff_revoked(client) ? HANDOFF_REVOKED : HANDOFF_CLIENT_GONE, NULL);
            free(quoted);
            return;
        }
        failed = handoff_write(client, event, (size_t)snprintf(event, sizeof event, "data: {\"n\":%d,\"text\":\"hello\"}\n\n", n));
    }
    if (!failed) handoff_write(client, "event: done\ndata: {}\n\n", 22);
    handoff_finish(client, 200, HANDOFF_OK, NULL);
    free(quoted);
}

/* The request's body, come back. */
static void echo(struct handoff *client) {
    char *body = NULL;
    size_t length = 0, room = 0;
    ssize_t count;
    do {
        if (length == room) {
            char *more = realloc(body, room = room ? 2 * room : 16 << 10);
            if (!more) { errno = ENOMEM; count = -1; break; }
            body = more;
        }
        count = handoff_read(client, body + length, room - length);
        if (count > 0) length += (size_t)count;
    } while (count > 0);
    if (count < 0) {
        int error = errno;
        handoff_finish(client, 0, error == ECANCELED    ? HANDOFF_REVOKED
                                  : error == ETIMEDOUT  ? HANDOFF_TIMEOUT
                                  : error == ECONNRESET ? HANDOFF_CLIENT_GONE
                                                        : HANDOFF_ERROR, strerror(error));
    } else {
        handoff_respond(client, 200, bytes, body, length, 1);
        handoff_give_back(client, 200);
    }
    free(body);
}

static void environment(struct handoff *client) {
    char **variables = handoff_env(client), *out = NULL;
    size_t length = 0;
    FILE *object = open_memstream(&out, &length);
    for (char **variable = variables; variables && *variable; variable++) {
        char *value = strchr(*variable, '='), *name = handoff_json_quote(*variable, (size_t)(value - *variable));
        char *quoted = handoff_json_quote(value + 1, strlen(value + 1));
        fprintf(object, "%c%s:%s", variable == variables ? '{' : ',', name, quoted);
        free(name);
        free(quoted);
    }
    fputs("}", object);
    fclose(object);
    handoff_respond(client, 200, json, out, length, 1);
    handoff_give_back(client, 200);
    free(out);
    free(variables);
}

static void large(struct handoff *client) {
    char number[24], part[16 << 10];
    unsigned long long left = strtoull(parameter(client, "bytes", number, sizeof number), NULL, 10);
    memset(part, 'a', sizeof part);
    int failed = handoff_start(client, 200, bytes);
    while (!failed && left > 0) {
        size_t length = left < sizeof part ? (size_t)left : sizeof part;
        failed = handoff_write(client, part, length);
        left -= length;
    }
    handoff_finish(client, 200, HANDOFF_OK, NULL);
}

static void respond(struct handoff *client, const char *body) {
    handoff_respond(client, 200, text, body, strlen(body), 0);
    handoff_finish(client, 200, HANDOFF_OK, NULL);
}

static void give_back(struct handoff *client, const struct handoff_field *headers, const char *body, size_t length) {
    handoff_respond(client, 200, headers, body, length, 1);
    handoff_give_back(client, 200);
}

static void serve(struct handoff *client, void *context) {
    (void)context;
    const char *target = handoff_target(client);
    char path[64], value[64], seconds[24];
    size_t length;
    snprintf(path, sizeof path, "%.*s", (int)strcspn(target, "?"), target);
    if (!strcmp(path, "/hello")) respond(client, "hello\n");
    else if (!strcmp(path, "/return")) give_back(client, text, "returned\n", 9);
    else if (!strcmp(path, "/unread")) give_back(client, text, "unread\n", 7);
    else if (!strcmp(path, "/echo")) echo(client);
    else if (!strcmp(path, "/env")) environment(client);
    else if (!strcmp(path, "/meta")) give_back(client, json, handoff_metadata(client), strlen(handoff_metadata(client)));
    else if (!strcmp(path, "/data")) {
        const char *data = handoff_data(client, &length);
        give_back(client, bytes, data, length);
    } else if (!strcmp(path, "/refuse")) {
        int reason = handoff_reason_named(parameter(client, "reason", value, sizeof value));
        unsigned after = (unsigned)strtoul(parameter(client, "retry_after", seconds, sizeof seconds), NULL, 10);
        handoff_refuse(client, reason < 0 ? HANDOFF_OVERLOADED : (enum handoff_reason)reason, after, "as asked");
    } else if (!strcmp(path, "/hold")) {
        if (!handoff_start(client, 200, text) && !handoff_write(client, "held\n", 5))
            while (!handoff_wait(client, 60000)) continue;
        handoff_finish(client, 200, handoff_revoked(client) ? HANDOFF_REVOKED : HANDOFF_CLIENT_GONE, NULL);
    } else if (!strcmp(path, "/fail")) {
        handoff_respond(client, 500, text, "failed\n", 7, 0);
        handoff_finish(client, 500, HANDOFF_ERROR, "as asked");
    } else if (!strcmp(path, "/large")) large(client);
    else if (!strcmp(path, "/drop")) {
        handoff_take(client);
        handoff_drop(client);
    } else if (!strcmp(path, "/late")) {
        poll(NULL, 0, 3000);
        respond(client, "hello\n");
    } else stream(client);
}

static void on_signal(int number) {
    (void)number;
    handoff_stop(acceptor);
}

static void report(const char *what) { fprintf(stderr, "dropped a peer: %s\n", what); }

int main(int argc, char **argv) {
    struct handoff_options options = {.name = "daemon-c", .report = report};
    const char *socket = NULL;
    int is_understood = 1;
    for (int i = 1; i < argc; i++) {
        int dialect = handoff_dialect_named(argv[i]);
        if (!strcmp(argv[i], "--interval") && i + 1 < argc) interval_ms = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--in-flight-max") && i + 1 < argc) options.in_flight_max = (unsigned)atoi(argv[++i]);
        else if (!socket) socket = argv[i];
        else if (dialect >= 0) options.dialect = (enum handoff_dialect)dialect;
        else is_understood = 0;
    }
    if (!socket || !is_understood)
        return fputs("usage: daemon SOCKET [baton|seqpacket|stream|fdpass|datagram] [--interval MS] [--in-flight-max N]\n", stderr), 2;
    acceptor = handoff_listen(socket, &options);
    if (!acceptor) return fprintf(stderr, "%s\n", handoff_problem()), 1;
    struct sigaction stop = {.sa_handler = on_signal};
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    printf("ready %s\n", socket);
    fflush(stdout);
    handoff_serve(acceptor, serve, NULL);
    handoff_drain(acceptor, 30000);
    handoff_close(acceptor);
    return 0;
}
