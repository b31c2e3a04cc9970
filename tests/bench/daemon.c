/*
 * The daemon behind every gateway that is measured. However a request comes to
 * it, it gives the same small answer, or the same event stream.
 *
 * usage: daemon -u SOCKET [-d seqpacket|fdpass|http] [-s BYTES] [-e] [-f]
 *
 * -d is how a request comes:
 *   seqpacket  the client, by SCM_RIGHTS with a message; one connection each
 *   fdpass     the client, by SCM_RIGHTS with one byte, on a stream connection
 *              of its own; the gateway has written the answer's head
 *   http       its bytes, relayed: an HTTP/1 server for requests without a
 *              body, which keeps a connection as long as the other side asks
 * -s is how long the body of an answer to a relayed request is, on a connection
 *    that is kept: the small one over and over. Default: once.
 * -e gives event streams: a head and a message, then a message every second
 * until the client is gone. With -f the messages after the first are FLOOD_BYTES
 * long, and what is not taken of one is lost: for clients that do not read.
 *
 * Says `ready` on standard output when it listens. USR1: prints one line of
 * JSON, how many it answered and how many it could not, how many streams it
 * holds and how many messages went out.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "answer.h"

enum {
	DESCRIPTORS_MAX = 253,
	FDS_MAX = 65536,
	MESSAGE_BYTES_MAX = 128 * 1024,
	BODY_BYTES_MAX = 64 * 1024, /* with its head less than a Unix socket takes at once */
	FLOOD_BYTES = 64 * 1024,
	TICK_MS = 10,
	TICKS = 100, /* after which a stream's turn comes again: 1 s */
};

#define MESSAGE "data: {\"token\": \"and so on\"}\n\n"

static char answer_kept[BODY_BYTES_MAX + 256]; /* with a body of the length that was asked for */
static size_t answer_kept_len;
static const char stream_began[] = HEAD("text/event-stream") CLOSED "\r\n" MESSAGE;
static const char message[] = MESSAGE;

static enum { SEQPACKET, FDPASS, HTTP } dialect;
static int epoll, is_streaming, is_flooding;
static char flood[FLOOD_BYTES];
static unsigned long answered, failed, streams, messages;
static unsigned char head_end_got[FDS_MAX]; /* by connection of http: bytes of "\r\n\r\n" */

static struct slot { /* the streams whose turn is at one tick */
	int *clients;
	size_t count, room;
} slots[TICKS];
static size_t tick;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void watch(int fd)
{
	struct epoll_event e = { .events = EPOLLIN, .data.fd = fd };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) < 0)
		die("epoll_ctl");
}

static void hold(int client)
{
	struct slot *s = &slots[tick];

	if (s->count == s->room) {
		s->room = s->room ? 2 * s->room : 64;
		if (!(s->clients = realloc(s->clients, s->room * sizeof *s->clients)))
			die("realloc");
	}
	s->clients[s->count++] = client;
	streams++;
}

/* Gives each stream whose turn it is its message; one that cannot take it now goes without. */
static void next_messages(int timer)
{
	unsigned long long ticks;

	if (read(timer, &ticks, sizeof ticks) < 0)
		return;
	for (; ticks > 0; ticks--) {
		struct slot *s = &slots[tick = (tick + 1) % TICKS];
		const char *bytes = is_flooding ? flood : message;
		size_t len = is_flooding ? sizeof flood : sizeof message - 1;

		for (size_t i = 0; i < s->count;) {
			if (send(s->clients[i], bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) {
				messages++;
				i++;
			} else if (errno == EAGAIN) {
				i++;
			} else {
				close(s->clients[i]);
				s->clients[i] = s->clients[--s->count];
				streams--;
			}
		}
	}
}

/* Answers; no answer is larger than a send buffer. */
static void give(int client, const char *bytes, size_t len)
{
	if (send(client, bytes, len, MSG_NOSIGNAL) == (ssize_t)len)
		answered++;
	else
		failed++;
}

/* A client of our own. The gateway took the head, so nothing of it is unread and
 * close() ends the answer by FIN. */
static void serve(int client)
{
	if (is_streaming) {
		if (dialect == FDPASS)
			give(client, message, sizeof message - 1);
		else
			give(client, stream_began, sizeof stream_began - 1);
		hold(client);
		return;
	}
	if (dialect == FDPASS)
		give(client, BODY, sizeof BODY - 1);
	else
		give(client, answer_closed, sizeof answer_closed - 1);
	close(client);
}

/* Takes the one message of a connection. Returns -1 if it has not come yet. */
static int receive(int connection)
{
	static char bytes[MESSAGE_BYTES_MAX];
	/* Room for as many as one message can carry: with less, descriptors leak. */
	static union {
		struct cmsghdr header;
		char room[CMSG_SPACE(DESCRIPTORS_MAX * sizeof(int))];
	} control;
	struct iovec iov = { bytes, sizeof bytes };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof control };
	struct cmsghdr *c;
	int clients[DESCRIPTORS_MAX];
	size_t n = 0;

	if (recvmsg(connection, &m, MSG_CMSG_CLOEXEC) < 0)
		return errno == EAGAIN ? -1 : 0;
	c = CMSG_FIRSTHDR(&m);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(clients, CMSG_DATA(c), n * sizeof(int));
	}
	if (n == 1) {
		serve(clients[0]);
		return 0;
	}
	for (size_t i = 0; i < n; i++)
		close(clients[i]);
	failed++;
	return 0;
}

/* Whether a head ends in these bytes, the first of which may stand behind a part of its end. */
static int head_ends(int connection, const char *bytes, size_t len)
{
	static const char end[] = "\r\n\r\n";
	unsigned char got = head_end_got[connection];

	for (size_t i = 0; i < len && got < 4; i++)
		got = bytes[i] == end[got] ? got + 1 : bytes[i] == '\r';
	head_end_got[connection] = got % 4;
	return got == 4;
}

/* Reads a relayed request, which is not pipelined, and answers it. Returns 0
 * when the connection is to be closed, 1 when it is a stream now, -1 to wait. */
static int relayed(int connection)
{
	static char bytes[16384];
	ssize_t n = recv(connection, bytes, sizeof bytes - 1, 0);

	if (n <= 0)
		return n < 0 && errno == EAGAIN ? -1 : 0;
	if (!head_ends(connection, bytes, (size_t)n))
		return -1;
	if (is_streaming) {
		serve(connection);
		return 1;
	}
	/* A piece of these fields may have come before: then the other side closes. */
	bytes[n] = '\0';
	if (strcasestr(bytes, "\r\nConnection: close\r\n") || strstr(bytes, " HTTP/1.0\r\n")) {
		give(connection, answer_closed, sizeof answer_closed - 1);
		return 0;
	}
	give(connection, answer_kept, answer_kept_len);
	return -1;
}

/* Something came on a connection, which epoll watches or, when it is new, does not yet. */
static void look_at(int connection, int is_watched)
{
	int said = dialect == HTTP ? relayed(connection) : receive(connection);

	if (said < 0 && !is_watched)
		watch(connection);
	else if (said > 0 && is_watched)
		epoll_ctl(epoll, EPOLL_CTL_DEL, connection, NULL);
	else if (said == 0) {
		head_end_got[connection] = 0;
		close(connection);
	}
}

static int listen_on(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int type = dialect == SEQPACKET ? SOCK_SEQPACKET : SOCK_STREAM;
	int s = socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
	umask(0); /* gateways that were started as root come as somebody else */
	if (bind(s, (struct sockaddr *)&a, sizeof a) < 0 || listen(s, 4096) < 0)
		die(path);
	return s;
}

static void make_answer(size_t body_len)
{
	answer_kept_len = (size_t)sprintf(answer_kept, HEAD("text/plain") "Content-Length: %zu\r\n\r\n", body_len);
	for (size_t i = 0; i < body_len; i++)
		answer_kept[answer_kept_len++] = BODY[i % (sizeof BODY - 1)];
}

static int start_timer(void)
{
	struct itimerspec every = { { 0, TICK_MS * 1000000 }, { 0, TICK_MS * 1000000 } };
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);

	timerfd_settime(timer, 0, &every, NULL);
	watch(timer);
	return timer;
}

int main(int argc, char **argv)
{
	struct epoll_event events[256];
	struct signalfd_siginfo info;
	struct rlimit fds;
	const char *path = NULL;
	sigset_t report;
	int listener, signals, timer = -1;
	long body_len = sizeof BODY - 1;

	for (int o; (o = getopt(argc, argv, "u:d:s:ef")) != -1;) {
		switch (o) {
		case 'u': path = optarg; break;
		case 'd': dialect = *optarg == 'f' ? FDPASS : *optarg == 'h' ? HTTP : SEQPACKET; break;
		case 's': body_len = atol(optarg); break;
		case 'e': is_streaming = 1; break;
		case 'f': is_flooding = 1; break;
		default: return 2;
		}
	}
	if (!path || body_len < 1 || body_len > BODY_BYTES_MAX)
		return 2;
	make_answer((size_t)body_len);
	getrlimit(RLIMIT_NOFILE, &fds);
	fds.rlim_cur = fds.rlim_max < FDS_MAX ? fds.rlim_max : FDS_MAX;
	setrlimit(RLIMIT_NOFILE, &fds); /* one descriptor for each stream */
	sigemptyset(&report);
	sigaddset(&report, SIGUSR1);
	sigprocmask(SIG_BLOCK, &report, NULL);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	watch(signals = signalfd(-1, &report, SFD_CLOEXEC));
	watch(listener = listen_on(path));
	if (is_streaming)
		timer = start_timer();
	puts("ready");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(epoll, events, 256, -1);

		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd, c;

			if (fd == signals && read(signals, &info, sizeof info) > 0) {
				printf("{\"answered\": %lu, \"failed\": %lu, \"streams\": %lu, \"messages\": %lu}\n",
				    answered, failed, streams, messages);
				fflush(stdout);
			} else if (fd == timer) {
				next_messages(timer);
			} else if (fd == listener) {
				/* What it brings mostly comes with the connection. */
				for (int k = 0; k < 64 && (c = accept4(listener, NULL, NULL,
				    SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0; k++)
					look_at(c, 0);
			} else {
				look_at(fd, 1);
			}
		}
	}
}
