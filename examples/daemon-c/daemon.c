/* A daemon that takes handed-over clients and streams to each: daemon SOCKET [seqpacket|stream] [--interval MS] */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { DATA_BYTES_MAX = 1 << 20, DESCRIPTORS_MAX = 253 };
static const struct timeval patience = {.tv_sec = 30}; /* with peers and clients that stop in the middle */
static char data[DATA_BYTES_MAX + 1]; /* of the one client that a process has */
static size_t length;

/* Reads the message, which is the acknowledgement: the client, or -1. Whatever else came is closed. */
static int receive(int connection, int until_eof) {
    int fds[DESCRIPTORS_MAX], count = 0, broken = 0, n;
    do { /* Room for all 253 descriptors that can come: in a smaller buffer, strays would leak. */
        union { char bytes[CMSG_SPACE(sizeof fds)]; struct cmsghdr align; } control;
        struct iovec part = {data + length, sizeof data - length};
        struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        n = recvmsg(connection, &m, MSG_CMSG_CLOEXEC);
        if (n < 0) { broken = 1; break; }
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
            for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
                int fd;
                memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
                if (count < DESCRIPTORS_MAX) fds[count++] = fd; else close(fd);
            }
        }
        length += n;
        broken = (m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || length > DATA_BYTES_MAX || count > 1;
    } while (!broken && until_eof && n > 0);
    if (length == 1 && data[0] == 0) length = 0; /* no data */
    if (!broken && count == 1) return fds[0];
    while (count) close(fds[--count]);
    return -1;
}

static void serve(int client, int interval_ms) {
    setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    fcntl(client, F_SETFL, fcntl(client, F_GETFL) & ~O_NONBLOCK); /* It arrives non-blocking. */
    FILE *out = fdopen(client, "w");                              /* stdio goes on after a short write */
    fputs("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
          "Cache-Control: no-store\r\nConnection: close\r\n\r\ndata: {\"n\":1,\"text\":\"", out);
    for (size_t i = 0; i < length; i++) { /* as a JSON string; the data is UTF-8 */
        unsigned char c = data[i];
        fprintf(out, c < ' ' ? "\\u%04x" : c == '"' || c == '\\' ? "\\%c" : "%c", c);
    }
    fputs("\"}\n\n", out);
    for (int n = 2; n <= 10 && !fflush(out); n++) { /* fails when the client has left */
        usleep(interval_ms * 1000);
        fprintf(out, "data: {\"n\":%d,\"text\":\"hello\"}\n\n", n);
    }
    fputs("event: done\ndata: {}\n\n", out);
    /* Some of the request's body may be unread; a plain close would reset the connection under the answer. */
    if (fflush(out) || shutdown(client, SHUT_WR)) return;
    struct pollfd readable = {client, POLLIN, 0};
    for (int i = 0; i < 100 && poll(&readable, 1, 2000) > 0; i++)
        if (recv(client, data, sizeof data, 0) <= 0) break;
}

int main(int argc, char **argv) {
    int until_eof = 0, interval_ms = 100;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (argc < 2 || strlen(argv[1]) >= sizeof address.sun_path)
        return fputs("usage: daemon SOCKET [seqpacket|stream] [--interval MS]\n", stderr), 2;
    for (int i = 2; i < argc; i++)
        if (!strcmp(argv[i], "--interval") && i + 1 < argc) interval_ms = atoi(argv[++i]);
        else until_eof = !strcmp(argv[i], "stream");
    strcpy(address.sun_path, argv[1]);
    int type = (until_eof ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_CLOEXEC;
    int probe = socket(AF_UNIX, type, 0), listener = socket(AF_UNIX, type, 0);
    if (connect(probe, (void *)&address, sizeof address) && errno == ECONNREFUSED) unlink(argv[1]); /* stale */
    close(probe);
    if (bind(listener, (void *)&address, sizeof address) || chmod(argv[1], 0660) || listen(listener, 128))
        return perror(argv[1]), 1;
    signal(SIGCHLD, SIG_IGN); /* no zombies */
    signal(SIGPIPE, SIG_IGN); /* a client that has left is an error of the write */
    dprintf(1, "ready %s\n", argv[1]);
    for (;;) {
        int connection = accept4(listener, 0, 0, SOCK_CLOEXEC);
        if (connection < 0) { usleep(errno == EMFILE ? 1000000 : 0); continue; }
        if (fork() == 0) { /* One process per client; a parent that cannot fork closes unread, and the gateway knows. */
            close(listener);
            setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
            int client = receive(connection, until_eof);
            close(connection);
            if (client >= 0) serve(client, interval_ms);
            _exit(0);
        }
        close(connection);
    }
}
