/* As daemon.rs, with the library in C: daemon SOCKET NAME REFUSED_PERCENT. */
#define _GNU_SOURCE
#define HANDOFF_IMPLEMENTATION
#include "handoff.h"
#include <sys/random.h>

static struct handoff_acceptor *acceptor;
static const char *name;
static unsigned refused_percent;
static const struct handoff_field text[] = {{"Content-Type", "text/plain"}, {NULL, NULL}};

static void serve(struct handoff *client, void *context) {
    (void)context;
    unsigned chance;
    if (getrandom(&chance, sizeof chance, 0) == sizeof chance && chance % 100 < refused_percent) {
        handoff_refuse(client, HANDOFF_OVERLOADED, 0, "by chance");
        return;
    }
    char kind[16], mark[64], body[64 << 10];
    int pause_ms = 0;
    sscanf(handoff_target(client), "/%15[^/]/%63[^?]?%d", kind, mark, &pause_ms);
    if (!strcmp(kind, "stream")) {
        int failed = handoff_start(client, 200, text);
        for (int n = 0; n < 5 && !failed; n++) {
            failed = handoff_write(client, body, (size_t)snprintf(body, sizeof body, "%s %s %d\n", name, mark, n));
            poll(NULL, 0, 3);
        }
        if (!failed) handoff_write(client, body, (size_t)snprintf(body, sizeof body, "%s %s end\n", name, mark));
        handoff_finish(client, 200, HANDOFF_OK, NULL);
        return;
    }
    if (!strcmp(kind, "late")) poll(NULL, 0, pause_ms);
    size_t length = (size_t)snprintf(body, sizeof body, "%s %s\n", name, mark);
    if (!strcmp(kind, "echo")) {
        ssize_t count;
        while ((count = handoff_read(client, body + length, sizeof body - length)) > 0) length += (size_t)count;
        if (count < 0) {
            handoff_finish(client, 0, HANDOFF_ERROR, "a body that could not be read");
            return;
        }
    }
    int is_last = !strcmp(kind, "last");
    handoff_respond(client, 200, text, body, length, !is_last);
    if (is_last) handoff_finish(client, 200, HANDOFF_OK, NULL);
    else handoff_give_back(client, 200);
}

static void on_signal(int number) {
    (void)number;
    handoff_stop(acceptor);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    struct handoff_options options = {.in_flight_max = 32, .name = argv[2]};
    name = argv[2];
    refused_percent = (unsigned)atoi(argv[3]);
    acceptor = handoff_listen(argv[1], &options);
    if (!acceptor) return fprintf(stderr, "%s\n", handoff_problem()), 1;
    sigaction(SIGTERM, &(struct sigaction){.sa_handler = on_signal}, NULL);
    printf("ready %s\n", argv[1]);
    fflush(stdout);
    handoff_serve(acceptor, serve, NULL);
    handoff_drain(acceptor, 30000);
    handoff_close(acceptor);
    return 0;
}
